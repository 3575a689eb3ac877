"""Launchers start what they are told on every host, agree with themselves, and resume after a preemption only."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from jaxlm.devices.hosts import given_by
from jaxrun.config.verbs import Verb
from jaxrun.process.interrupt import CAUGHT
from twistjax import cli as twistjax_cli

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "scripts" / "launch"
SHELL = [*sorted(LAUNCH.glob("*.sbatch")), *sorted((ROOT / "scripts").glob("*/*.sh"))]
JOBSETS = [LAUNCH / "jobset-gpu.yaml", LAUNCH / "jobset-tpu.yaml"]
TOOLS = ("bash", "basename", "dirname", "mkdir", "seq", "sleep")
RECORD = '#!/bin/bash\nprintf "%q " "${0##*/}" "$@" >>"$RECORD"\necho >>"$RECORD"\n'
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


@pytest.fixture
def tools(tmp_path):
    """A folder to be the whole PATH: no program of a real cluster is in it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        (folder / name).symlink_to(shutil.which(name))
    return folder


@pytest.fixture
def call(tmp_path, tools):
    """Runs a script where programs are fakes, which record how they were called before they do what they are given."""

    def run(script, *arguments, fakes, env=None):
        for name, does in fakes.items():
            (tools / name).write_text(RECORD + does)
            (tools / name).chmod(0o755)
        record = tmp_path / "record"
        around = {"PATH": str(tools), "HOME": str(tmp_path), "RECORD": str(record)}
        done = subprocess.run(
            [tools / "bash", LAUNCH / script, *arguments],
            cwd=tmp_path,
            env=around | (env or {}),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        lines = record.read_text().splitlines() if record.exists() else []
        return SimpleNamespace(
            code=done.returncode, out=done.stdout, err=done.stderr, calls=[shlex.split(line) for line in lines]
        )

    return run


@pytest.fixture
def slurm(call):
    """Runs slurm.sbatch as a Slurm job does, with an srun that ends as told."""

    def run(*arguments, srun="", job="77", scontrol="", **environment):
        fakes = {"srun": f'printf "%s" "$JAX_LOCAL_DEVICE_IDS" >devices\n{srun}', "scontrol": scontrol, "twistjax": ""}
        given = {"SLURM_JOB_ID": job} if job else {}
        return call("slurm.sbatch", *arguments, fakes=fakes, env=given | environment)

    return run


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_a_shell_script_has_no_fault_that_can_be_seen_without_running_it(path):
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if checker is None:
        if os.environ.get("CI") == "true":
            pytest.fail("shellcheck is missing; make venv installs it")
        pytest.skip("shellcheck is missing; make venv installs it")
    done = subprocess.run([checker, "-x", path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# Slurm


def test_slurm_gives_the_command_to_srun_word_by_word_and_ends_with_it(slurm, tmp_path):
    done = slurm("twistjax", "train", "my runs.yaml", "subnetworks.kappa=[0.5,1.0]", SLURM_CPUS_PER_TASK="16")
    assert (done.code, done.err) == (0, "")
    [(program, *words)] = done.calls
    assert program == "srun" and words[-4:] == ["twistjax", "train", "my runs.yaml", "subnetworks.kappa=[0.5,1.0]"]
    assert words[:-4] == ["--kill-on-bad-exit=0", "--wait=0", "--cpus-per-task=16"]
    assert (tmp_path / "devices").read_text() == ""


@pytest.mark.parametrize("code", [130, 143, 138])
def test_a_slurm_job_that_was_warned_is_queued_again(slurm, code):
    done = slurm("twistjax", "train", "small.yaml", srun=f"exit {code}")
    assert done.calls[1:] == [["scontrol", "requeue", "77"]]
    assert done.code == 0 and "job 77 is queued again" in done.out


def test_every_signal_that_a_program_catches_or_dies_of_is_a_warning_to_slurm():
    codes = re.search(r"\^\(([\d|]+)\)\$", (LAUNCH / "slurm.sbatch").read_text())
    assert codes is not None
    interrupted = {128 + number for number in CAUGHT}
    assert set(map(int, codes[1].split("|"))) == interrupted


@pytest.mark.parametrize("code", [1, 2, 137])
def test_a_slurm_job_that_failed_ends_with_the_exit_code_of_its_program(slurm, code):
    done = slurm("twistjax", "train", "small.yaml", srun=f"exit {code}")
    assert done.code == code and len(done.calls) == 1


def test_a_slurm_job_that_is_being_ended_is_not_queued_again(slurm):
    done = slurm("twistjax", "train", "small.yaml", srun="kill -TERM $PPID; sleep 0.2; exit 130")
    assert done.code == 130 and len(done.calls) == 1


def test_a_slurm_job_that_cannot_be_queued_again_does_not_pass_for_done(slurm):
    assert slurm("twistjax", "train", "small.yaml", srun="exit 130", scontrol="exit 1").code == 130


@pytest.mark.parametrize(("tasks", "devices"), [("1", "0,1,2,3"), ("4", "")])
def test_a_slurm_process_gets_all_gpus_of_its_node_or_the_one_that_jax_takes_by_its_number(
    slurm, tmp_path, tasks, devices
):
    done = slurm("twistjax", "train", "small.yaml", SLURM_GPUS_ON_NODE="4", SLURM_NTASKS_PER_NODE=tasks)
    assert done.code == 0 and "--gpu-bind=none" in done.calls[0]
    assert (tmp_path / "devices").read_text() == devices


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        ((), {}, "no command given, expected one such as"),
        (("twistjax", "train"), {"job": ""}, "not in a Slurm job, expected: sbatch slurm.sbatch twistjax train"),
        (("nowhere",), {}, "'nowhere' is not on the PATH"),
        (
            ("twistjax",),
            {"SLURM_GPUS_ON_NODE": "4", "SLURM_NTASKS_PER_NODE": "2"},
            "--ntasks-per-node=2 with 4 GPUs on a node, expected 1 or 4",
        ),
    ],
)
def test_what_a_slurm_job_cannot_start_is_one_line(slurm, arguments, environment, said):
    done = slurm(*arguments, **environment)
    assert done.code == 2 and not done.calls
    assert said in done.err and len(done.err.splitlines()) == 1


def test_slurm_warns_the_processes_early_and_keeps_what_was_said():
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?", (LAUNCH / "slurm.sbatch").read_text(), re.MULTILINE))
    name, seconds = options["signal"].split("@")
    assert f"SIG{name}" in [one.name for one in CAUGHT] and int(seconds) >= 60
    assert {"nodes", "gpus-per-node", "cpus-per-task", "time", "requeue", "output"} <= set(options)
    assert options["open-mode"] == "append"


@pytest.mark.skipif(
    shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin") is None, reason="Slurm is not installed"
)
def test_a_real_slurm_runs_warns_preempts_and_ends_a_run_of_two_processes():
    done = subprocess.run([ROOT / "scripts" / "engines" / "try_slurm.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "two processes were one run in all three starts" in done.stdout


@pytest.mark.parametrize("script", ["try_slurm", "try_slurm_engine"])
def test_trying_slurm_says_in_one_line_what_is_missing(tmp_path, tools, script):
    folder = tmp_path / "scripts" / "engines"
    folder.mkdir(parents=True)
    for name in (f"{script}.sh", "throwaway_slurm.sh"):
        (folder / name).write_text(
            (ROOT / "scripts" / "engines" / name).read_text().replace("PATH=$PATH:/usr/sbin", "")
        )
    command = [tools / "bash", folder / f"{script}.sh"]
    done = subprocess.run(command, env={"PATH": str(tools)}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"{script}: error: 'sbatch' is not installed, expected Debian's slurm-wlm and munge\n"


# Kubernetes


def parts(path):
    """A manifest, its one replicated job, that job's spec, its pods' spec and their one container."""
    whole = yaml.safe_load(path.read_text())
    [job] = whole["spec"]["replicatedJobs"]
    pods = job["template"]["spec"]["template"]["spec"]
    [container] = pods["containers"]
    return SimpleNamespace(whole=whole, job=job, spec=job["template"]["spec"], pods=pods, container=container)


def environment(path, index):
    """What Kubernetes puts into the environment of the container of a completion index."""
    given = {}
    for one in parts(path).container["env"]:
        assert ("value" in one) != ("valueFrom" in one)
        if "valueFrom" in one:
            assert one["valueFrom"] == {"fieldRef": {"fieldPath": INDEX}}
        given[one["name"]] = one.get("value", str(index))
    assert all(isinstance(value, str) for value in given.values()), "Kubernetes takes nothing but text"
    return given


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.stem)
def test_a_jobset_has_the_fields_that_its_definition_asks_for_and_no_other(path):
    seen = parts(path)
    assert (seen.whole["apiVersion"], seen.whole["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(seen.whole) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(seen.whole["spec"]) <= {"replicatedJobs", "failurePolicy", "network"}
    assert set(seen.whole["spec"].get("network", {})) <= {"enableDNSHostnames", "publishNotReadyAddresses", "subdomain"}
    assert set(seen.job) == {"name", "replicas", "template"}
    assert set(seen.spec) == {"parallelism", "completions", "completionMode", "backoffLimit", "template"}
    assert {"name", "image", "args", "resources"} <= set(seen.container)
    # Names of pods are host names, with numbers of the job and the pod behind them.
    for name in (seen.whole["metadata"]["name"], seen.job["name"], seen.container["name"]):
        assert re.fullmatch(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", name)


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.stem)
def test_a_jobset_starts_all_hosts_again_together_and_lets_them_save_first(path):
    seen = parts(path)
    policy = seen.whole["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0 and policy["restartStrategy"] == "BlockingRecreate"
    assert (seen.spec["backoffLimit"], seen.pods["restartPolicy"]) == (0, "Never")
    assert seen.pods["terminationGracePeriodSeconds"] >= 120
    assert seen.job["replicas"] == 1 and seen.spec["completionMode"] == "Indexed"
    assert seen.spec["parallelism"] == seen.spec["completions"] > 1


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.stem)
def test_a_jobset_runs_a_verb_in_the_volume_that_all_hosts_share(path):
    seen = parts(path)
    program, verb, *_ = seen.container["args"]
    verbs: dict[str, Verb] = {"twistjax": twistjax_cli.VERBS}[program]
    assert verb in verbs
    assert "command" not in seen.container, "it would take the place of tini, which passes signals on"
    volumes = {one["name"]: one for one in seen.pods["volumes"]}
    mounts = {one["name"]: one["mountPath"] for one in seen.container["volumeMounts"]}
    assert set(volumes) == set(mounts)
    assert volumes["shared"]["persistentVolumeClaim"]["claimName"]
    assert mounts["shared"] == seen.container["workingDir"]


def test_pods_with_gpus_are_given_one_group_by_hand_whose_coordinator_is_the_first_pod():
    seen = parts(LAUNCH / "jobset-gpu.yaml")
    jobset, network = seen.whole["metadata"]["name"], seen.whole["spec"]["network"]
    assert network == {"enableDNSHostnames": True, "publishNotReadyAddresses": True, "subdomain": jobset}
    [port] = [one["containerPort"] for one in seen.container["ports"]]
    for index in range(seen.spec["completions"]):
        assert given_by(environment(LAUNCH / "jobset-gpu.yaml", index)) == {
            "coordinator_address": f"{jobset}-{seen.job['name']}-0-0.{network['subdomain']}:{port}",
            "num_processes": seen.spec["completions"],
            "process_id": index,
        }
    assert seen.container["resources"]["limits"]["nvidia.com/gpu"] > 0


def test_pods_with_tpus_are_one_slice_that_jax_finds_out_about():
    seen = parts(LAUNCH / "jobset-tpu.yaml")
    assert given_by(environment(LAUNCH / "jobset-tpu.yaml", 1)) == {}
    chips = 1
    for side in seen.pods["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"):
        chips *= int(side)
    assert chips == seen.spec["completions"] * seen.container["resources"]["limits"]["google.com/tpu"]
    [topology] = seen.whole["metadata"]["annotations"].values()
    assert topology == "cloud.google.com/gke-nodepool"


def test_the_image_holds_every_package_and_an_extra_that_exists():
    text = (LAUNCH / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = set(re.findall(r"^COPY (\w+) \1$", text, re.MULTILINE))
    assert copied == {name.removesuffix("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    beside = re.search(r"^COPY (.*) \./$", text, re.MULTILINE)
    assert beside is not None and {project["project"]["readme"], "pyproject.toml", "LICENSE"} <= set(beside[1].split())
    assert all((ROOT / name).is_file() for name in beside[1].split())
    extras = set(re.findall(r"EXTRA=(\w+)", text))
    assert extras == {"gpu", "tpu"} <= set(project["project"]["optional-dependencies"])


# Cloud TPU VM

# Does on this machine, in $HOME, what is to be done on workers; installing is only recorded.
GCLOUD = """
case "$*" in
  *describe*) [[ -n ${STATE-READY} ]] && echo "${STATE-READY}"; exit ;;
esac
for word; do
  if [[ $word == --command=* && $word != *pip* ]]; then cd && exec bash -c "${word#--command=}"; fi
done
"""


@pytest.fixture
def tpu_vm(call, tmp_path):
    """Runs tpu_vm.sh with a gcloud whose workers are a folder of this machine."""
    program = tmp_path / ".altojax" / "bin" / "twistjax"
    program.parent.mkdir(parents=True)
    (tmp_path / "altojax.whl").touch()

    def run(*arguments, ends=0, fakes=None, **environment):
        program.write_text(f'{RECORD}echo "$JAX_COORDINATOR_PORT $PWD"\nexit {ends}\n')
        program.chmod(0o755)
        given = {"SOURCE": "altojax.whl"} | environment
        return call("tpu_vm.sh", *arguments, fakes={"gcloud": GCLOUD} if fakes is None else fakes, env=given)

    return run


ASKED = ("my-slice", "us-east5-b", "twistjax", "train", "my runs.yaml", "subnetworks.kappa=[0.5,1.0]")


def test_a_tpu_slice_gets_files_and_program_and_runs_the_command_word_by_word_on_all_workers(tpu_vm, tmp_path):
    (tmp_path / "books.txt").touch()
    done = tpu_vm(*ASKED, FILES="books.txt", FOLDER="my folder")
    assert (done.code, done.err) == (0, "")
    makes, copies, installs, runs, program = done.calls
    assert program == list(ASKED[2:])
    port, folder = done.out.split(maxsplit=1)
    assert folder.strip() == str(tmp_path / "my folder") and given_by({"JAX_COORDINATOR_PORT": port}) == {}
    for one in (makes, installs, runs):
        assert one[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "my-slice"]
        assert one[6:8] == ["--zone=us-east5-b", "--worker=all"]
    assert copies[4:9] == ["scp", "--recurse", "books.txt", "altojax.whl", "my-slice:my folder/"]
    assert copies[9:] == ["--zone=us-east5-b", "--worker=all"]
    assert shlex.split(installs[-1])[-1] == "./altojax.whl[tpu]"


def test_a_tpu_slice_installs_a_git_revision_without_copying_anything(tpu_vm):
    done = tpu_vm(*ASKED, SOURCE="git+https://host/altojax@v1")
    assert done.code == 0 and not any("scp" in one for one in done.calls)
    assert shlex.split(done.calls[1][-1])[-1] == "altojax[tpu] @ git+https://host/altojax@v1"


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("READY", "ended with exit code 130; run the same command again to resume from the last checkpoint"),
        ("PREEMPTED", "my-slice is preempted: make it again, give it the disk that holds output_dir, and run"),
        ("", "my-slice is gone: make it again"),
    ],
)
def test_it_says_how_to_go_on_after_a_tpu_slice_was_interrupted_or_taken_away(tpu_vm, state, said):
    done = tpu_vm(*ASKED, ends=130, STATE=state)
    assert done.code == 130 and said in done.err and len(done.err.splitlines()) == 1


def test_wrong_input_on_a_tpu_slice_is_not_called_an_interruption(tpu_vm):
    done = tpu_vm(*ASKED, ends=2)
    assert (done.code, done.err) == (2, "")


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (ASKED[:2], {}, "given 2 arguments, expected NAME ZONE COMMAND"),
        (("My_Slice", *ASKED[1:]), {}, "NAME: given 'My_Slice'"),
        (("my-slice", "us-east5", *ASKED[2:]), {}, "ZONE: given 'us-east5', expected one such as us-east5-b"),
        ((*ASKED[:2], "python"), {}, "COMMAND: given 'python', expected altojax or twistjax"),
        (ASKED, {"SOURCE": ""}, "SOURCE: given '', expected a wheel"),
        (ASKED, {"SOURCE": "no.whl"}, "SOURCE: no file 'no.whl'"),
        (ASKED, {"FILES": "no.yaml"}, "FILES: no file or folder 'no.yaml'"),
        (ASKED, {"fakes": {}}, "'gcloud' is not installed"),
    ],
)
def test_what_cannot_start_on_a_tpu_slice_is_one_line(tpu_vm, arguments, environment, said):
    done = tpu_vm(*arguments, **environment)
    assert done.code == 2 and not done.calls
    assert said in done.err and len(done.err.splitlines()) == 1
