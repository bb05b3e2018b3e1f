"""Machines on this one: each with its own network, name, processes and /dev/shm. Needs root."""

import os
import subprocess
from pathlib import Path

MOST = 20


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True)


class Network:
    """A bridge that machines are plugged into; this one is on it as well. ``folder``: for its file of names."""

    def __init__(self, folder: Path):
        self.number, self.made = os.getpid() % 100_000, []
        self.bridge, self.net = f"br{self.number}", f"10.79.{self.number % 250}"
        ip(f"link add {self.bridge} type bridge")
        ip(f"addr add {self.net}.254/24 dev {self.bridge}")
        ip(f"link set {self.bridge} up")
        self.hosts = folder / "hosts"
        names = [f"{self.address(i)} m{i}" for i in range(MOST)]
        self.hosts.write_text("\n".join(["127.0.0.1 localhost", *names]) + "\n")

    def address(self, index: int) -> str:
        return f"{self.net}.{index + 1}"

    def machine(self, index: int) -> list[str]:
        """A machine that is new, or was used before -> what a command that runs there begins with."""
        space, plug = f"m{self.number}-{index}", f"v{self.number}-{index}"
        if space not in self.made:
            self.made.append(space)
            ip(f"netns add {space}")
            ip(f"link add {plug} type veth peer name eth0 netns {space}")
            ip(f"link set {plug} master {self.bridge} up")
            ip(f"-n {space} addr add {self.address(index)}/24 dev eth0")
            ip(f"-n {space} link set eth0 up")
            ip(f"-n {space} link set lo up")
        own = f'hostname m{index}; mount -t tmpfs tmpfs /dev/shm; mount --bind {self.hosts} /etc/hosts; exec "$@"'
        apart = f"ip netns exec {space} unshare -u -m -p --fork --kill-child --mount-proc sh -c"
        return [*apart.split(), own, "sh"]

    def close(self) -> None:
        for space in self.made:
            ip(f"netns del {space}")
        ip(f"link del {self.bridge}")
