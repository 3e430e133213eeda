"""The registration API: routes, schemas, authentication and problem details over FastAPI."""
