"""The learned peak finder's training: tiles of simulated shots, their targets, the loss, the loop, the comparison."""
