// Answers as Kubernetes' CronJob controller would: reads questions as JSON objects, and writes the fires of each, or
// null for a schedule that is refused. It belongs to no build; tests/unit/test_kubernetes_schedule.py says how to run it.
package main

import (
	"encoding/json"
	"os"
	"time"

	"github.com/robfig/cron/v3"
)

type question struct {
	Schedule string
	Zone     string
	After    time.Time
	Until    time.Time
}

func (asked question) fires() []string {
	schedule, err := cron.ParseStandard("TZ=" + asked.Zone + " " + asked.Schedule)
	if err != nil {
		return nil
	}
	fires := []string{}
	for fire := schedule.Next(asked.After); !fire.IsZero() && !fire.After(asked.Until); fire = schedule.Next(fire) {
		fires = append(fires, fire.UTC().Format("2006-01-02T15:04:05"))
	}
	return fires
}

func main() {
	questions, answers := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	var asked question
	for questions.Decode(&asked) == nil {
		answers.Encode(asked.fires())
	}
}
