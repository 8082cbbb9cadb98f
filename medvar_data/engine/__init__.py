"""Who does the work: this process, a pool, a cluster; and how much memory there is."""
