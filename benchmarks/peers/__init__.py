"""Other libraries' DQN at one fixed configuration, each in an environment of its own, for the speed benchmarks."""
