"""Layers that the zoo's networks have of one kind or another, one module per family of the contract
(`app.recipe.students.layers`), and what several architectures share of convolutions."""
