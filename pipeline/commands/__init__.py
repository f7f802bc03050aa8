"""Commands beside the stages: they leave nothing in a run's folder. A module each, with `Settings` and `run(settings)`."""

COMMANDS = {
    "plan": "what a training will cost: memory by part, largest micro-batch, days, checkpoints, epochs of each source",
    "validate": "perplexity by source, and lm-evaluation-harness tasks, of any checkpoint or model in Hugging Face format",
    "stats": "the figures of the report as tables, or as JSON",
    "inspect": "questions about a run, by name or in SQL, on its documents, records and metrics",
    "watch": "the report of a run that goes on, served to a browser on this machine",
    "generate": "goes on with a prompt, from a model in Hugging Face format",
    "convert_tokens": "token shards to Hugging Face datasets and back",
    "convert": "model files between Hugging Face's, Meta's and llama2.c's format",
}
