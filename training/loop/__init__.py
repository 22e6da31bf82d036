"""One loop that trains any registered network for any attribute.

In: an `Attribute`, a network's name, a recipe, and sources of samples: the paper's tree, series with truth, shots
simulated on the fly, arrays.
Out: a run folder: history, checkpoint, best weights, plots, and the model as `analyzer.single_model` saves it.
"""
