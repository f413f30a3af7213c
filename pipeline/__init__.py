"""Frames to packets, packets to masks: the parts that the nodes and the training are made of."""
