"""The command line as a person meets it: fast, and one sentence per mistake."""

import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import lodestar
from lodestar.cli.app import app

BIN = Path(sys.executable).parent


def lodestar_(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "lodestar", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "120", **environment},
        check=False,
    )


def test_help_answers_in_under_half_a_second() -> None:
    seconds = []  # of the processor: on a loaded machine the clock tells of others
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert lodestar_("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(seconds) < 0.5


@pytest.mark.parametrize(
    "command", [("--help",), ("config", "check", "lodestar/local/demo.yaml"), ("report", "nowhere")]
)
def test_light_commands_load_neither_torch_nor_grpc(command: tuple[str, ...]) -> None:
    program = (
        "import sys\nfrom lodestar.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'grpc', 'numpy', 'plotly'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) if heavy else 0)"
    )
    root = Path(lodestar.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program, *command], capture_output=True, text=True, cwd=root, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_conductor_loads_no_torch() -> None:
    program = "import sys, lodestar.crew.here, lodestar.local.view; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_every_command_has_help() -> None:
    runs = ["demo", "run", "serve", "train", "eval", "report", "chat", "generate"]
    others = [
        "rank",
        "card",
        "data check",
        "data split",
        "config check",
        "config options",
        "config schema",
        "certs dev",
        "certs token",
    ]
    cluster = ["submit", "status", "logs", "cancel"]
    for command in (*runs, *others, *cluster):
        done = CliRunner().invoke(app, [*command.split(), "--help"])
        assert done.exit_code == 0, done.output
        assert "Usage:" in done.output


def test_the_version_is_printed() -> None:
    assert lodestar_("--version").stdout == f"lodestar {lodestar.__version__}\n"


def _config(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text)
    return str(path)


TYPO = "name: a\nrecipe: instruct-gpt\nstages: {ppo: {stpes: 4}}\n"


@pytest.mark.parametrize("command", [("run",), ("train", "sft"), ("eval",), ("config", "check")])
def test_a_misspelt_option_is_one_sentence_that_names_the_nearest(tmp_path: Path, command: tuple[str, ...]) -> None:
    path = _config(tmp_path, TYPO)
    done = lodestar_(*command, path)
    assert done.returncode == 2
    assert done.stderr == "error: stages.ppo: stpes: unknown option; did you mean steps?\n"


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        ("name: a\n", ("ppo.steps=many",), "stages.ppo: steps: Input should be a valid integer"),
        ("name: a\n", ("ppo.top_p=0.9",), "top_p 0.9 is no option, leave it out: training samples the whole"),
        ("name: a\n", ("ppo.top_k=0",), "top_k 0 is no option, leave it out: training samples the whole"),
        ("name: a\n", ("data.max_prompt_tokens=250",), "with data.max_prompt_tokens it is 314, beyond"),
        ("name: a\n", ("ppo.kl.reward_estimator=k3",), "only k1 may enter the reward"),
        ("name: a\n", ("ppo.steps",), "ppo.steps: an override is written key=value"),
        ("- a\n- b\n", (), "holds no mapping of options"),
        ("name: [a\n", (), "is not YAML"),
        ("name: " + "[" * 3000 + "]" * 3000, (), "is nested too deeply to be options"),
        ("name: a\nqueue: {url: 'redis://u:hun@ter2@h/0'}\n", (), "redis://u:***@h/0"),
    ],
)
def test_a_bad_value_is_explained_without_a_traceback(
    tmp_path: Path, text: str, overrides: tuple[str, ...], said: str
) -> None:
    done = lodestar_("config", "check", _config(tmp_path, text), *overrides)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_configuration_is_named() -> None:
    done = lodestar_("run", "nowhere.yaml")
    assert (done.returncode, done.stderr) == (2, "error: nowhere.yaml: no such file\n")


def test_debug_shows_the_traceback() -> None:
    done = lodestar_("--debug", "run", "nowhere.yaml")
    assert "Traceback" in done.stderr
    assert "ConfigError" in done.stderr


def test_a_bad_port_names_its_flag(tmp_path: Path) -> None:
    done = lodestar_("serve", "policy", str(tmp_path), "--port", "70000")
    assert done.returncode == 2
    assert "--port: Input should be less than or equal to 65535 (got 70000)" in done.stderr


def test_a_held_folder_is_refused_with_the_ways_on(tmp_path: Path) -> None:
    config = _config(tmp_path, f"name: held\nruns_dir: {tmp_path}\n")
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "config.yaml").write_text("name: held\n")
    done = lodestar_("run", config)
    assert done.returncode == 2
    assert "--resume goes on with it, --fresh starts over" in done.stderr


def test_the_schema_documents_every_option() -> None:
    schema = json.loads(lodestar_("config", "schema").stdout)
    stages = [stage["anyOf"][0] for stage in schema["properties"]["stages"]["properties"].values()]
    assert {"ppo", "sft", "label"} <= schema["properties"]["stages"]["properties"].keys()
    sections = [schema, *schema["$defs"].values(), *stages]
    undocumented = [
        f"{section['title']}.{name}"
        for section in sections
        for name, option in section.get("properties", {}).items()
        if not option.get("description")
    ]
    assert not undocumented


def test_a_stages_options_can_be_printed_alone() -> None:
    assert "learning_rate" in json.loads(lodestar_("config", "schema", "sft").stdout)["properties"]
    done = lodestar_("config", "schema", "stf")
    assert (done.returncode, "did you mean sft?" in done.stderr) == (2, True)


def test_a_password_in_a_url_is_refused_and_not_repeated(tmp_path: Path) -> None:
    path = _config(tmp_path, "name: demo\nqueue: {url: 'redis://u:hunter2@h/0'}\n")
    done = lodestar_("config", "check", path)
    assert done.returncode == 2
    assert "queue.password_file" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


def test_foreign_text_is_no_markup(tmp_path: Path) -> None:
    done = lodestar_("report", str(tmp_path / "r[/x]"))
    assert done.returncode == 2
    assert "r[/x] is not a run's folder" in done.stderr


@pytest.mark.parametrize("named", ["./no-model", "rows"])
def test_a_run_that_could_not_start_leaves_nothing_behind(tmp_path: Path, named: str) -> None:
    """Found before anything runs (a model that is not there), or by the first stage (a model that is none)."""
    (tmp_path / "rows").mkdir()
    row = json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"})
    (tmp_path / "rows" / "rows.jsonl").write_text(f"{row}\n" * 3)
    text = f"name: mine\nruns_dir: {tmp_path}/runs\nmodel: {{path: {tmp_path / named}}}\nrecipe: instruct-gpt\n"
    text += f"stages: {{data: {{source: jsonl, root: {tmp_path}/rows}}, sft: null}}\n"
    done = lodestar_("run", "--plain", _config(tmp_path, text))
    assert done.returncode == 2, done.stderr
    assert named.removeprefix("./") in done.stderr
    assert not (tmp_path / "runs").exists()


def test_an_option_of_a_stage_that_was_written_for_its_service_says_where_it_belongs() -> None:
    done = lodestar_(
        "config", "check", str(Path(lodestar.__file__).with_name("local") / "demo.yaml"), "reward.epochs=3"
    )
    assert done.returncode == 2
    assert "that is an option of stage reward: write stages.reward.epochs" in done.stderr


def test_the_evaluation_of_a_run_that_is_not_there_trains_nothing(tmp_path: Path) -> None:
    path = _config(tmp_path, f"name: mine\nruns_dir: {tmp_path}/runs\n")
    done = lodestar_("eval", path)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path}/runs/mine holds no run to evaluate: lodestar run {path} starts it\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_demo_passes_options_on() -> None:
    root = Path(lodestar.__file__).parents[1]
    words = [
        "make",
        "-n",
        "demo",
        "ppo.steps=8",
        "sft.max_seconds=3",
        "ARGS=--fresh --plain",
        f"PYTHON={sys.executable}",
    ]
    done = subprocess.run(words, capture_output=True, text=True, cwd=root, check=True)
    (line,) = [line for line in done.stdout.splitlines() if "lodestar demo" in line]
    assert sorted(shlex.split(line)[2:]) == ["--fresh", "--plain", "ppo.steps=8", "sft.max_seconds=3"]
