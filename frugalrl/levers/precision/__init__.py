"""Low precision: a learner whose weights, gradients and moments are numbers of 16 bits, and what keeps it learning."""
