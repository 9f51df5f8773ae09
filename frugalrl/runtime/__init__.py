"""How a training run is carried out: `compiled` in one XLA program, `actors` with processes beside one learner."""
