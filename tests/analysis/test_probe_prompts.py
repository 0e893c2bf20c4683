"""Test the probe prompts: each is listed once."""

from scratch_gpt.analysis.probe_prompts import CANARIES, OFF_DOMAIN, SENSITIVE


def test_probes_and_canaries_occur_once():
    prompts = [probe.prompt for probe in (*SENSITIVE, *OFF_DOMAIN)]
    canaries = [phrase for phrases in CANARIES.values() for phrase in phrases]
    assert len({*prompts}) == len(prompts) and len({*canaries}) == len(canaries)
