"""The long proof: processes are killed at random places for hours, and at the end every fire is accounted for."""
