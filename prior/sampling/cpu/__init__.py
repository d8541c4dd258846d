"""Steps of sampling as compiled loops on a CPU, of which nothing else of the prior knows the inside."""
