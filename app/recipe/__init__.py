"""The contract: pydantic models of a job document. No I/O, no torch, no imports from other packages of the project."""
