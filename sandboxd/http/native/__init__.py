"""The native API, /v1: a superset of the REST API that ai2in's clients speak. Its contract is the route table."""
