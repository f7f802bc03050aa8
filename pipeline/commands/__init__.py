"""Commands beside the stages: they leave nothing in a run's folder. A module each, with `Settings` and `run(settings)`."""

COMMANDS = {
    "plan": "what a training will cost: memory by part, largest micro-batch, days, checkpoints, epochs of each source",
    "validate": "perplexity by source, and lm-evaluation-harness tasks, of any checkpoint or model in Hugging Face format",
    "generate": "goes on with a prompt, from a model in Hugging Face format",
    "convert_tokens": "token shards to Hugging Face datasets and back",
    "convert": "model files between Hugging Face's, Meta's and llama2.c's format",
}
