"""The contract: pydantic models of everything that a job may say. No input or output, no torch, nothing of ours."""
