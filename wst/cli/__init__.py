"""The command line: one file for each command."""

#: Module (with a function ``run``) and one line of help for each command.
COMMANDS = {
    "init": ("wst.cli.init", "write a project of your own: config, data, reward, README"),
    "list": ("wst.cli.list", "list configs, rewards, students, data sets, baselines and callbacks"),
    "help": ("wst.cli.help", "show the options of a command or of any class: wst help LabelMatch"),
    "check": ("wst.cli.check", "try a config before it costs anything: gold answers, and a few queries all the way"),
    "fit": ("wst.cli.lightning", "train the teacher"),
    "validate": ("wst.cli.lightning", "compute the validation metrics"),
    "test": ("wst.cli.lightning", "compare the trained teacher with the untrained one and with no instruction"),
    "predict": ("wst.cli.lightning", "write instructions and responses to predictions.jsonl"),
    "compare": ("wst.cli.compare", "compare instructors on one test set"),
    "instruct": ("wst.cli.instruct", "write instructions with a trained teacher"),
    "serve": ("wst.cli.serve", "serve a trained teacher before any student, as an OpenAI-compatible server"),
    "distil": ("wst.cli.distil", "find the best static sentence, and compare the trained teacher with it"),
    "gate": ("wst.cli.gate", "give no instruction where the trained teacher may do harm"),
    "cache": ("wst.cli.cache", "show, verify and prune the answers kept on disk"),
    "completion": ("wst.cli.completion", "print a script that completes commands and options in bash, zsh or fish"),
}
#: Commands that import torch themselves, if and when they need it.
LIGHT = ("cache", "completion", "help", "init", "instruct", "list", "serve")
#: Commands that take LightningCLI's options, with the options of their own.
CONFIGURED: dict[str, tuple[str, ...]] = {"fit": (), "validate": (), "test": (), "predict": (), "check": ("queries",)}
