"""Ask what samples are good for: a small classifier trained on real slices, on samples and on both, tested on unseen patients."""
