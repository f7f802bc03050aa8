"""Commands beside the stages: they leave nothing in a run's folder. A module each, with `Settings` and `run(settings)`."""

COMMANDS = {
    "generate": "goes on with a prompt, from a model in Hugging Face format",
    "convert_tokens": "token shards to Hugging Face datasets and back",
    "convert": "model files between Hugging Face's, Meta's and llama2.c's format",
}
