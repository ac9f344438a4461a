"""Ports of a machine that is a double; JACK's are in a file beside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from midi_doubles import Machine, machine
from port_ears import HUSH, OFF, ON, Ear, send_until_lost, wait_for

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.clock import SongClock
from kmidi_mlx.live.planned import NoteRing, PlannedEvent
from kmidi_mlx.live.player import Player
from kmidi_mlx.live.ports import list_ports, open_input, open_output, why_no_ports
from kmidi_mlx.live.sinks import MidiSink, PortLostError

__all__ = ["machine"]


def test_a_port_is_found_by_a_part_of_its_name(machine: Machine) -> None:
    names = ["Grand Piano", "Small Synth", "Small Organ", "virtual"]
    assert list_ports() == {"inputs": names, "outputs": names}
    output = open_output("grand")
    assert output.name == "Grand Piano"
    output.send(ON)
    output.send(b"\xb1\x40\x7f")
    machine.wait_for("open Grand Piano", "send 903c50", "send b1407f")
    output.close()
    # what sounded is ended by the port itself
    machine.wait_for("send b1407f", "send 803c00", *HUSH)
    with pytest.raises(PortLostError, match="'Grand Piano' went away"):
        output.send(ON)


def test_a_name_that_says_too_little_is_refused(machine: Machine) -> None:
    with pytest.raises(KmidiError, match="part of several ports' names: Small Synth, Small Organ"):
        open_output("small")
    with pytest.raises(KmidiError, match="no MIDI port 'harp'; there are: Grand Piano, Small Syn"):
        open_output("harp")
    for name in ("", " ", "a\0b"):
        with pytest.raises(KmidiError, match="names no port"):
            open_output(name)
        with pytest.raises(KmidiError, match="names no port"):
            open_input(name, lambda message, moment: None, lambda error: None)


def test_ports_of_one_name_are_numbered_and_our_own_are_left_out(machine: Machine) -> None:
    machine.plug("Keys", "KmiDi", "Keys", "Keys 2")
    assert list_ports()["outputs"] == ["Keys", "Keys (2)", "Keys 2", "virtual"]
    output = open_output("Keys")
    assert output.name == "Keys"
    output.close()


def test_a_new_port_is_made(machine: Machine) -> None:
    output = open_output("virtual")
    assert output.name == "KmiDi"
    machine.wait_for("virtual KmiDi")
    output.close()


def test_what_comes_is_heard_until_the_port_is_closed(machine: Machine) -> None:
    ear = Ear()
    listening = open_input("piano", ear.hear, ear.lost.append)
    assert listening.name == "Grand Piano"
    before = time.monotonic()
    machine.come("903c50", "fe", "803c00")
    wait_for(lambda: ear.messages == [ON, b"\xfe", OFF])
    moments = [moment for _, moment in ear.heard]
    assert before <= moments[0] <= moments[-1] <= time.monotonic()
    listening.close()
    machine.come("903c50")
    time.sleep(0.1)
    assert len(ear.heard) == 3
    assert ear.lost == []


def test_a_device_that_is_unplugged_is_lost(machine: Machine) -> None:
    ear = Ear()
    output = open_output("piano")
    listening = open_input("piano", ear.hear, ear.lost.append)
    machine.plug("Small Synth")
    assert send_until_lost(output, 2.0) < 0.1
    wait_for(lambda: ear.lost)
    assert isinstance(ear.lost[0], PortLostError)
    output.close()
    listening.close()
    assert len(ear.lost) == 1


@pytest.mark.parametrize("machine", ["rtmidi"], indirect=True)
def test_a_device_that_refuses_is_lost(machine: Machine) -> None:
    output = open_output("piano")
    machine.mode("refuse")
    assert send_until_lost(output, 2.0) < 0.1
    output.close()


@pytest.mark.parametrize("machine", ["rtmidi"], indirect=True)
def test_a_library_that_hangs_holds_nobody(machine: Machine) -> None:
    lost = []
    ring, clock = NoteRing(), SongClock()
    player = Player(ring, clock, lambda sink, error: lost.append(error))
    player.start()
    player.add(MidiSink(open_output("piano")))
    machine.mode("hang")
    clock.start(time.monotonic())
    for step in range(0, 260, 4):
        ring.push(PlannedEvent(step, 60, 80, step))
        ring.push(PlannedEvent(step + 2, 60, 0, step))
        if ring.room < 4:
            wait_for(lambda: ring.room > 60)
    wait_for(lambda: lost, 6.0)
    machine.mode("")
    wait_for(lambda: not len(ring))
    player.stop()
    # the process that hung is ended by the system, and another one hushes the device
    wait_for(lambda: machine.log[-1] == "send bf7800")
    assert isinstance(lost[0], PortLostError)
    # 2 s of music were played meanwhile, in time
    assert player.lateness.largest_ms < 100


@pytest.mark.parametrize("machine", ["rtmidi"], indirect=True)
def test_when_the_ports_process_dies_another_one_hushes_the_device(machine: Machine) -> None:
    output = open_output("piano")
    output.send(ON)
    machine.wait_for("send 903c50")
    machine.mode("die")
    output.send(ON)
    wait_for(lambda: machine.log[-1] == "send bf7800")
    assert [line for line in machine.log if line.startswith("send b0")] == HUSH
    with pytest.raises(PortLostError):
        output.send(ON)
    output.close()


@pytest.mark.parametrize("machine", ["rtmidi"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_when_the_player_is_killed_the_notes_end(machine: Machine, number: int) -> None:
    program = (
        "import os, signal, time\n"
        "from kmidi_mlx.live.ports import open_output\n"
        "output = open_output('piano')\n"
        "output.send(bytes((0x90, 60, 80)))\n"
        "time.sleep(0.1)\n"
        f"os.killpg(0, {int(number)})\n"
        "time.sleep(9)\n"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{machine.folder}:{root}"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, start_new_session=True,
        check=False, capture_output=True,
    )  # fmt: skip
    assert done.returncode == -number
    machine.wait_for("send 903c50", "send 803c00", *HUSH)


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["rtmidi"], indirect=True)
def test_a_library_that_hangs_does_not_outlive_the_player(machine: Machine) -> None:
    machine.mode("hang")
    program = (
        "import os, signal, time\n"
        "from kmidi_mlx.live.ports import open_output\n"
        "open_output('piano').send(bytes((0x90, 60, 80)))\n"
        "time.sleep(0.1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{machine.folder}:{Path(__file__).parents[2]}"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    server = int((machine.folder / "pid").read_text())
    os.kill(server, 0)

    def is_gone() -> bool:
        try:
            os.kill(server, 0)
        except ProcessLookupError:
            return True
        # where nobody takes over orphans, what ended stays in the list
        return " Z" in Path(f"/proc/{server}/stat").read_text()

    wait_for(is_gone, 5.0)


def test_a_machine_without_a_library_or_a_system_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    Machine(tmp_path, "none")
    assert list_ports() == {"inputs": [], "outputs": []}
    assert "pip install python-rtmidi" in str(why_no_ports())
    with pytest.raises(KmidiError, match="pip install python-rtmidi"):
        open_output("virtual")
    (tmp_path / "rtmidi.py").write_text("API_MACOSX_CORE = 1\n")
    assert list_ports() == {"inputs": [], "outputs": []}
    assert "no MIDI system runs on this machine" in str(why_no_ports())
    for name in ("virtual", "piano"):
        with pytest.raises(KmidiError, match="no MIDI system runs on this machine"):
            open_input(name, lambda message, moment: None, lambda error: None)


def test_a_system_that_does_not_answer_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "rtmidi.py").write_text("import time; time.sleep(60)\n")
    monkeypatch.setattr("kmidi_mlx.live.port_process._START_SECONDS", 0.3)
    assert list_ports() == {"inputs": [], "outputs": []}
    with pytest.raises(KmidiError, match="does not answer"):
        open_output("piano")
