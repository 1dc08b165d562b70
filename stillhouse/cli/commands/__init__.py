"""The commands of `stillhouse`, by what they are about; each module registers its own."""
