"""The commands of `stillhouse`, by topic; each module registers its own."""
