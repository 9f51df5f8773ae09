"""Settings of the whole test session: JAX may neither promote a dtype nor a rank without being asked."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# cases of fast tests that take 5 to 20 seconds, and for which others of the same test stand in `make test`
LONG = {
    "test_laws.py::test_a_member_of_a_population_is_the_run_alone[sac-none]",
    "test_laws.py::test_a_member_of_a_population_is_the_run_alone[dqn-none]",
    "test_laws.py::test_a_neutral_lever_gives_the_same_numbers[td3, 3 steps-truncated ratios]",
    "test_laws.py::test_a_neutral_lever_gives_the_same_numbers[miqn-truncated ratios]",
    "test_laws.py::test_a_neutral_lever_gives_the_same_numbers[rainbow-none]",
    "test_laws.py::test_an_identity_lever_gives_the_same_program[sac, discrete-fp32 actors]",
    "test_laws.py::test_an_identity_lever_gives_the_same_program[rainbow-none]",
    "test_pixels.py::test_every_part_moves_in_every_precision_and_the_policy_is_one_network[fp16_0]",
    "test_ppo.py::test_the_laws_of_a_run[ptr-ppo]",
    "test_ppo.py::test_the_laws_of_a_run[a2c]",
    "test_ppo.py::test_the_laws_of_a_run[pqn]",
    "test_ppo.py::test_the_known_values_are_learned[reward after two steps-ptr-ppo]",
    "test_ppo.py::test_the_known_values_are_learned[reward of both-ptr-ppo]",
    "test_ppo.py::test_the_known_values_are_learned[cut off at once-ptr-ppo]",
    "test_precision.py::test_a_learner_of_16_bits_learns_what_one_of_32_does[sac-fp16]",
    "test_precision.py::test_agents_of_rollouts_learn_in_16_bits[a3c-fp16]",
    "test_a3c.py::test_a_single_worker_is_the_agent_itself[actor-critic]",
    "test_a3c.py::test_the_laws_of_a_run[one-step-q]",
    "test_a3c.py::test_gradients_are_of_old_weights_and_meet_the_newest_with_one_set_of_statistics[actor-critic]",
    "test_probes.py::test_dqns_family_learns_the_known_values[rainbow-reward of both]",
    "test_probes.py::test_dqns_family_learns_the_known_values[iqn-reward of both]",
    "test_signals.py::test_a_signal_at_the_beginning_ends_the_run_cleanly[actors-0.2]",
    "test_signals.py::test_a_signal_at_the_beginning_ends_the_run_cleanly[actors-0.6]",
    "test_signals.py::test_a_signal_at_the_beginning_ends_the_run_cleanly[compiled-0.6]",
    "test_students.py::test_units_that_do_nothing_are_those_that_go[impala]",
    "test_students.py::test_units_that_do_nothing_are_those_that_go[nature]",
    "test_engines.py::test_fp32_agrees_with_the_network[litert-impala]",
    "test_actors.py::test_seeds_train_side_by_side_or_one_after_the_other[int8-static-False]",
    "test_joint.py::test_there_is_one_critic_and_it_learns_from_what_every_learner_drew[sac-dvd-4]",
    "test_laws.py::test_resumed_equals_never_stopped[sac-none]",
    "test_laws.py::test_resumed_equals_never_stopped[dqn-none]",
    "test_laws.py::test_a_neutral_lever_gives_the_same_numbers[sac, discrete-fp32 actors]",
    "test_laws.py::test_an_identity_lever_gives_the_same_program[sac-none]",
    "test_ppo.py::test_the_laws_of_a_run[impala]",
    "test_ppo.py::test_the_known_values_are_learned[reward after two steps-ppo]",
    "test_ppo.py::test_the_known_values_are_learned[cut off at once-impala]",
    "test_ppo.py::test_a_rollout_that_is_looked_at_once_teaches_what_it_does_when_it_is_prepared[sum]",
    "test_studies.py::test_every_run_of_every_study_is_one_that_train_takes[precision]",
    "test_population.py::test_what_a_member_takes_over[everything]",
    "test_engines.py::test_fp32_agrees_with_the_network[numpy-impala]",
    "test_engines.py::test_fp32_agrees_with_the_network[litert-nature]",
    "test_engines.py::test_int8_stays_close_to_the_network[litert-impala-int8-static]",
    "test_signals.py::test_a_compiled_run_stopped_at_any_moment_has_the_rows_of_one_that_was_not[1-2-more0]",
    "test_signals.py::test_a_compiled_run_stopped_at_any_moment_has_the_rows_of_one_that_was_not[4-2-more1]",
    "test_signals.py::test_a_compiled_run_stopped_at_any_moment_has_the_rows_of_one_that_was_not[40-2-more2]",
    "test_signals.py::test_a_compiled_run_stopped_at_any_moment_has_the_rows_of_one_that_was_not[30-0-more3]",
    "test_signals.py::test_a_signal_in_the_middle_saves_the_run_and_resume_finishes_it[2-130-actors]",
    "test_signals.py::test_a_signal_in_the_middle_saves_the_run_and_resume_finishes_it[15-143-compiled]",
    "test_sac.py::test_td3_and_ddpg_are_the_references[td3-1]",
    "test_sac.py::test_td3_and_ddpg_are_the_references[ddpg-1]",
    "test_export.py::test_the_file_computes_what_the_network_does[onnx-nature-fp32]",
    "test_python_api.py::test_actors_run_from_a_script_without_a_guard[script]",
    "test_rainbow.py::test_what_acts_is_a_plain_chain_that_gives_the_values[qrdqn]",
    "test_rainbow.py::test_what_acts_is_a_plain_chain_that_gives_the_values[iqn]",
    "test_brax.py::test_an_episode_is_truncated_after_1000_steps_or_as_many_as_asked_for_and_not_terminated[None-1000]",
    "test_joint.py::test_a_resumed_population_is_the_one_that_was_not_stopped[cem]",
    "test_population.py::test_a_population_in_actors_is_resumed_where_members_take_over",
    "test_brax.py::test_an_episode_is_truncated_after_1000_steps_or_as_many_as_asked_for_and_not_terminated[options1-1001]",
    "test_sac.py::test_discrete_sac_is_the_reference[1]",
    "test_sac.py::test_d4pg_is_the_reference[1]",
    "test_sac.py::test_sac_is_the_reference[1]",
    "test_engines.py::test_fp32_agrees_with_the_network[xla-impala]",
    "test_engines.py::test_fp32_agrees_with_the_network[numpy-nature]",
    "test_engines.py::test_int8_stays_close_to_the_network[numpy-impala-int8-static]",
    "test_export.py::test_the_file_computes_what_the_network_does[onnx-nature-int8]",
    "test_rainbow.py::test_munchausen_is_the_papers_sample_by_sample[6]",
    "test_rainbow.py::test_what_acts_is_a_plain_chain_that_gives_the_values[miqn]",
    "test_ppo.py::test_the_known_values_are_learned[reward of both-a2c]",
    "test_ppo.py::test_the_known_values_are_learned[cut off at once-a2c]",
    "test_frames.py::test_batches_are_those_of_whole_stacks[lanes-0.3]",
    "test_frames.py::test_batches_are_those_of_whole_stacks[windows-0.3]",
    "test_frames.py::test_batches_are_those_of_whole_stacks[streams-0.3]",
    "test_frames.py::test_batches_are_those_of_whole_stacks[floats-0.3]",
    "test_frames.py::test_batches_are_those_of_whole_stacks[one lane, step by step-0.3]",
    "test_lockstep.py::test_a_run_in_lockstep_is_the_same_again_stopped_and_resumed[ppo-InvertedPendulum-v5-{}]",
    "test_ppo.py::test_the_known_values_are_learned[reward of both-ppo]",
    "test_ppo.py::test_the_known_values_are_learned[reward after two steps-impala]",
    "test_engines.py::test_fp32_agrees_with_the_network[xla-nature]",
    "test_export.py::test_the_file_computes_what_the_network_does[litert-nature-fp32]",
    "test_actors.py::test_a_run_that_cannot_begin_is_one_line[BrokenReset]",
    "test_signals.py::test_a_signal_that_a_wrapper_sends_twice_is_one_signal[15]",
    "test_signals.py::test_a_run_that_was_killed_resumes[actors]",
    "test_students.py::test_units_that_do_nothing_are_those_that_go[mlp]",
    "test_laws.py::test_segments_of_other_lengths_change_nothing[2]",
    "test_probes.py::test_dqn_learns_the_known_values[reward of both-one step]",
    "test_probes.py::test_dqn_learns_the_known_values[reward of the observation-one step]",
    "test_frames.py::test_batches_are_those_of_whole_stacks[one lane, step by step-0.02]",
    "test_pqn.py::test_the_known_values_are_learned[one-step q-reward after two steps]",
    "test_precision.py::test_a_copy_of_the_policy_alone_is_kept_as_before[td3-bf16-stochastic]",
    "test_precision.py::test_a_copy_of_the_policy_alone_is_kept_as_before[td3-fp16]",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.removeprefix("tests/") in LONG:
            item.add_marker(pytest.mark.long)


def pytest_configure(config: pytest.Config) -> None:
    # compiled programs are kept from one session to the next, and shared with the processes that tests start
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("jax")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

    import jax

    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def _forget_programs() -> Iterator[None]:
    """The programs of a module are used by no other, and those of all would take gigabytes."""
    yield
    import jax

    jax.clear_caches()
