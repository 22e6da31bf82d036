"""Data sets to train and test on: the 2024 paper's tree of images, and series with their truth.

In: `images/{peaks,labels,peaks_water_overlay,water}/NN/*.h5`, or Eiger masters with `/entry/truth`.
Out: the same, checked, counted, labelled, overlaid, split so that nothing is on two sides, converted.
One image is in memory at a time, whatever the size of the set.
"""
