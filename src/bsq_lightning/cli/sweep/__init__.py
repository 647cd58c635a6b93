"""Many runs: the points of a multirun, on this machine or on a cluster, and how they stand."""
