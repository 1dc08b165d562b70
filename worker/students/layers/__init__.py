"""Layers whose kind a job can choose, one module per family of the contract (`app.recipe.students.layers`), and
convolutions that several architectures share."""
