"""Trains in Python, acts, keeps the policy and brings it back.

python examples/train_and_keep.py [FOLDER]      # where the policy is kept, by default "cartpole-policy"
"""

import sys

import gymnasium

import frugalrl


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else "cartpole-policy"
    run = frugalrl.train("a2c", "CartPole-v1", seeds=2, quiet=True)  # both seeds in one compiled program
    print(f"returns of the seeds after training: {run.returns['per_seed']}")
    run.save(folder)  # NumPy arrays and JSON

    policy = frugalrl.load(folder)  # needs no JAX
    env = gymnasium.make("CartPole-v1")
    obs, _ = env.reset(seed=0)
    total, done = 0.0, False
    while not done:
        obs, reward, terminated, truncated, _ = env.step(policy.predict(obs))
        total, done = total + float(reward), terminated or truncated
    env.close()
    print(f"return of one episode with the policy from {folder}: {total}")


if __name__ == "__main__":
    main()
