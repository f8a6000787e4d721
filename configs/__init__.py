"""Configs of the methods: `get_config(presets)` each, the run-wide knobs in `common`."""
