"""Models of other projects as runs, and runs as models of other projects.

Read tensors (what a stored tensor is), safetensors_files and gguf_files (the two formats), architectures (config.json and
ModelConfig), names (which tensor is which parameter), importing, exporting, model_card. It imports config, core, models,
parallel and run_directory. safetensors (extra [build]) and gguf (extra [gguf]) are imported where they are used.
"""
