"""The rows of the table of SAELens's verbs and behaviours in docs/compatibility.md, each with the test that shows it.

Upstream's names are those of its `tests/analysis/test_hooked_sae_transformer.py`; where a test runs at four places of a
transformer's block, it counts as four cases.
"""

__all__ = ["block", "ROWS"]

from dataclasses import dataclass

_HERE = "test_saelens_behaviours.py::"


@dataclass(frozen=True)
class Row:
    """One behaviour: what upstream asks, in which of its tests and cases, what is so here, and the test of ours."""

    behaviour: str
    upstream: str
    cases: int
    here: str
    test: str


ROWS = [
    Row("without SAEs the model is itself", "`model_with_no_saes_matches_original_model`", 1, "yes, to the bit",
        _HERE + "test_without_saes_the_model_is_itself"),
    Row("`add_sae`: the SAE stands in the place of the hook point; `get_deep_attr` finds it", "`add_sae`", 4, "yes",
        _HERE + "test_an_sae_stands_in_the_place_of_the_hook_point_and_goes"),
    Row("an SAE without error term changes the output, of every run verb",
        "`model_with_saes_does_not_match_original_model`, `add_sae_with_use_error_term_false`, "
        "`run_with_saes_use_error_term_false`", 12, "yes",
        _HERE + "test_an_sae_without_error_term_changes_the_output"),
    Row("a second SAE at a hook point takes the place of the first", "`add_sae_overwrites_prev_sae`, "
        "`reset_sae_replaces_sae`", 8, "yes", _HERE + "test_a_second_sae_at_a_hook_point_takes_the_place_of_the_first"),
    Row("resetting one SAE puts the hook point back", "`reset_sae_removes_sae_by_default`", 4, "yes",
        _HERE + "test_an_sae_stands_in_the_place_of_the_hook_point_and_goes"),
    Row("`reset_saes`: all, or those named", "`reset_saes_removes_all_saes_by_default`, "
        "`reset_saes_with_specific_act_names`", 2, "yes", _HERE + "test_reset_saes_takes_all_saes_or_those_named"),
    Row("`saes`: a block takes its SAEs away and puts the former back", "`saes_context_manager_removes_saes_after`, "
        "`..._restores_previous_sae_state`, `..._run_with_cache`", 3, "yes",
        _HERE + "test_a_block_of_saes_leaves_what_was_there_before"),
    Row("`run_with_saes`", "`run_with_saes`", 1, "yes", _HERE + "test_run_with_saes_attaches_for_one_run"),
    Row("`run_with_cache`, `run_with_cache_with_saes`: an `ActivationCache` with the latents", "`run_with_cache`, "
        "`run_with_cache_with_saes`", 2, "yes; a dict too, and finds aliases",
        _HERE + "test_caches_are_activation_caches_with_the_latents"),
    Row("`run_with_hooks`, `run_with_hooks_with_saes`: hooks on latents run once", "`run_with_hooks`, "
        "`run_with_hooks_with_saes`", 2, "yes", _HERE + "test_hooks_on_latents_run_once_in_one_run"),
    Row("with the error term the output, and the value behind the SAE, are the model's",
        "`model_with_use_error_term_saes_matches_original_model`, `add_sae_with_use_error_term_true`, "
        "`run_with_saes_use_error_term_true`, `run_with_cache_with_saes_use_error_term_true`, "
        "`run_with_saes_with_use_error_term`, `run_with_cache_with_saes_with_use_error_term`", 24, "yes",
        _HERE + "test_with_the_error_term_the_output_is_the_models"),
    Row("without it the cache holds the reconstruction", "`run_with_cache_with_saes_use_error_term_false`", 4, "yes",
        _HERE + "test_without_it_the_cache_holds_the_reconstruction"),
    Row("the error term belongs to the attachment: the SAE keeps its own setting, after an exception too",
        "`add_sae_with_use_error_term`, `saes_context_manager_with_use_error_term`, "
        "`use_error_term_restoration_after_exception`", 12, "yes",
        _HERE + "test_the_error_term_is_a_matter_of_the_attachment"),
    Row("a transcoder stands at `hook_name_out` and reads `hook_name`, by every verb, with and without error term",
        "`add_transcoder_changes_output`, `transcoder_with_error_term_preserves_output`, "
        "`transcoder_reset_removes_transcoder`, `transcoder_context_manager`, "
        "`transcoder_context_manager_with_error_term`, `transcoder_run_with_cache`, `run_with_saes_with_transcoder`",
        7, "yes, where both have the same positions", _HERE + "test_a_transcoder_stands_at_its_second_hook_point"),
    Row("an SAE and a transcoder at once", "`mixed_sae_and_transcoder`", 1, "yes",
        _HERE + "test_an_sae_and_a_transcoder_stand_side_by_side"),
    Row("gradients reach every SAE and transcoder", "`transcoder_gradients_flow`, "
        "`transcoder_with_error_term_gradients_flow`, `multiple_chained_transcoders_get_gradients`, "
        "`multiple_saes_get_gradients`", 4, "yes", _HERE + "test_gradients_reach_every_sae_and_transcoder"),
    Row("the input of every MLP can be read", "`HookedSAETransformer_adds_hook_in_to_mlp`", 1,
        "yes: the hook point of the norm before it",
        _HERE + "test_the_input_of_an_mlp_is_the_output_of_the_norm_before_it"),
    Row("SAEs that merge attention heads (`hook_z`)", "`HookedSAETransformer_works_with_hook_z_saes`", 1,
        "refused: image networks give heads side by side, which an SAE of whole channels reads",
        _HERE + "test_what_heads_give_is_read_whole_and_not_reshaped"),
    Row("arguments, their order and defaults, of all verbs", "", 0, "yes",
        "test_verbs.py::test_every_argument_of_saelens_is_there_in_its_order_with_its_default"),
    Row("cache keys and their order, of every architecture", "", 0, "yes",
        "test_verbs.py::test_cache_keys_and_their_order_are_saelens_own"),
    Row("`list_hooks`", "", 0, "yes, by any name", _HERE + "test_hooks_are_listed_by_any_name"),
    Row("`model.blocks[3].hook_out`, `get_deep_attr`", "", 0, "yes",
        "test_hook_names.py::test_numbered_parts_are_had_by_number_as_upstream_does"),
    Row("`ActivationCache`: keys, `to`, `remove_batch_dim`", "", 0, "yes",
        _HERE + "test_a_cache_finds_aliases_paths_and_numbers_and_is_a_dict_too"),
    Row("`ActivationCache`: `logit_attrs`, `decompose_resid`, ...", "", 0,
        "refused: an image network has no residual stream of a language model",
        _HERE + "test_methods_for_a_residual_stream_are_refused_and_the_others_work"),
    Row("skip transcoders", "", 0, "with their skip connection, which upstream leaves out",
        _HERE + "test_a_transcoder_of_any_architecture_puts_out_what_it_makes_of_its_input"),
    Row("`exclude_special_tokens` as a list of token numbers", "", 0, "refused: images have no token numbers",
        _HERE + "test_lists_of_token_numbers_are_refused"),
    Row("an unknown hook name", "", 0, "refused; upstream skips the SAE and logs it",
        "test_verbs.py::test_saelens_only_warns_of_an_unknown_hook_and_ours_raises"),
    Row("an SAE that cannot change the output", "", 0, "a warning is logged; upstream says nothing",
        _HERE + "test_an_sae_that_only_the_class_token_would_read_warns_and_the_advice_works"),
]  # fmt: skip


def block() -> str:
    """How many of upstream's cases hold, and the table."""
    cases = sum(row.cases for row in ROWS)
    refused = sum(row.cases for row in ROWS if row.here.startswith("refused"))
    lines = [
        f"{cases - refused} of {cases} cases of SAELens's `test_hooked_sae_transformer.py` hold; {refused} is refused.",
        "",
        "| behaviour | SAELens's tests (without `test_`) | cases | here | our test |",
        "|---|---|---|---|---|",
        *(
            f"| {row.behaviour} | {row.upstream or 'none'} | {row.cases or ''} | {row.here} | `{row.test}` |"
            for row in ROWS
        ),
    ]
    return "\n".join(lines)
