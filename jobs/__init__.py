"""Where work runs. In: a function and its units. Out: results as they come, whatever happens to the workers."""
