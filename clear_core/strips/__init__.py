"""An autoencoder over rows: strips of a large image pass its layers one after another, with the result of the whole.

autoencoder   the layers of an encoder or a decoder, in order
sweep         one layer over all strips of a feature map, on one device or several
attention     the middle attention, over all positions
moments       mean and variance of a whole feature map, gathered strip by strip
feature_map   where feature maps wait: in memory or in a file
"""
