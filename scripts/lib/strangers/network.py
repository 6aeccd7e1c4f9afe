"""Writers behind a server: Samba, vsftpd, sftp, Syncthing, aria2."""

import contextlib
import ftplib
import functools
import http.server
import os
import re
import signal
import subprocess
import threading
import time

from measure import Skip
from tools import Source, call, free_port, need, rounds, server, until

SFTP_SERVER = "/usr/lib/openssh/sftp-server"
SAMBA_DIRECTORIES = (
    "lock directory",
    "state directory",
    "cache directory",
    "pid directory",
    "private dir",
    "ncalrpc dir",
)
VSFTPD = "/usr/sbin/vsftpd"


def samba(place, work, seconds):
    need("smbd", "smbclient")
    as_root()
    port = free_port()
    directories = "\n".join(f"{name} = {work}/samba" for name in SAMBA_DIRECTORIES)
    os.makedirs(f"{work}/samba")
    with open(f"{work}/smb.conf", "w") as file:
        file.write(
            f"[global]\n{directories}\nlog file = {work}/samba/log\nmap to guest = Bad User\nguest account = root\n"
            f"interfaces = lo\nbind interfaces only = yes\ndisable netbios = yes\nload printers = no\n"
            f"[share]\npath = {place}\nguest ok = yes\nread only = no\nforce user = root\n"
        )
    source = Source(f"{work}/source", count=12)
    options = ["-N", "-p", str(port), "-s", f"{work}/smb.conf", "//127.0.0.1/share"]
    with server("smbd", "-F", "--no-process-group", "-s", f"{work}/smb.conf", "-p", str(port), port=port):
        for number in rounds(seconds):
            source.change()
            put = "prompt; recurse; mput *"
            call("smbclient", *options, "-c", put, cwd=source.directory)
            one, path = f"one-{number}", source.path(3)
            turns = f'put "{path}" {one}; rename {one} two; del two; put "{path}" kept'
            source.write(source.path(3), "wb", 70_000)
            call("smbclient", *options, "-c", turns)


def vsftpd(place, work, seconds):
    if not os.path.exists(VSFTPD):
        raise Skip("vsftpd is not here")
    as_root()
    port = free_port()
    # The root of an anonymous user must not be writable.
    upload = f"{place}/upload"
    os.mkdir(upload)
    os.makedirs("/var/run/vsftpd/empty", exist_ok=True)
    call("chown", "ftp", upload)
    # The path to it has to be open to the user `ftp`.
    with open(f"{work}/vsftpd.conf", "w") as file:
        file.write(
            f"listen=YES\nlisten_address=127.0.0.1\nlisten_port={port}\nbackground=NO\n"
            "anonymous_enable=YES\nlocal_enable=NO\n"
            f"write_enable=YES\nanon_root={place}\nanon_upload_enable=YES\nanon_mkdir_write_enable=YES\n"
            "anon_other_write_enable=YES\nanon_umask=022\nno_anon_password=YES\nseccomp_sandbox=NO\n"
        )
    source = Source(f"{work}/source", count=12)
    with server(VSFTPD, f"{work}/vsftpd.conf", port=port):
        for number in rounds(seconds):
            source.change()
            with ftplib.FTP() as client:
                client.connect("127.0.0.1", port)
                client.login()
                client.cwd("upload")
                upload_by_ftp(client, source, number)


def upload_by_ftp(client, source, number):
    for at in range(source.count):
        path = source.path(at)
        if not os.path.exists(path):
            continue
        with open(path, "rb") as file:
            client.storbinary(f"{'APPE' if at % 4 == 1 else 'STOR'} f{at}.part", file)
        if at % 3 == 0:
            client.rename(f"f{at}.part", f"f{at}")
    client.mkd(f"d{number}")
    if number % 2:
        client.rename(f"d{number}", f"e{number}")


def sftp(place, work, seconds):
    """Without ssh between the client and its server."""
    need("sftp")
    if not os.path.exists(SFTP_SERVER):
        raise Skip(f"{SFTP_SERVER} is not here")
    source = Source(f"{work}/source", count=12)
    for number in rounds(seconds):
        source.change()
        source.write(source.path(1), "wb", 300_000)
        commands = [
            f'put -R "{source.directory}" "{place}/tree-{number}"',
            f'put -p "{source.path(1)}" "{place}/new.part"',
            f'-rm "{place}/kept"',
            f'rename "{place}/new.part" "{place}/kept"',
            f'put -f "{source.path(1)}" "{place}/synced"',
        ]
        batch = f"{work}/batch"
        with open(batch, "w") as file:
            file.write("\n".join(commands) + "\n")
        call("sftp", "-q", "-b", batch, "-D", SFTP_SERVER)


def syncthing(place, work, seconds):
    """Two of them: what changes in the one's folder comes to the other's."""
    need("syncthing")
    homes, ids, ports = [f"{work}/home-{which}" for which in "ab"], [], [free_port(), free_port()]
    for home in homes:
        call("syncthing", "generate", f"--home={home}", "--no-default-folder")
        ids.append(call("syncthing", f"--home={home}", "--device-id").strip())
    source = Source(f"{work}/source", count=12)
    source.change()
    for which, folder in enumerate((source.directory, place)):
        configure_syncthing(f"{homes[which]}/config.xml", folder, ids, ports, which)
        os.makedirs(f"{folder}/.stfolder", exist_ok=True)
    start = ["syncthing", "serve", "--no-browser", "--no-restart", "--no-upgrade"]
    environment = os.environ | {"HOME": work, "STNOUPGRADE": "1"}
    with server(*start, f"--home={homes[0]}", env=environment), server(*start, f"--home={homes[1]}", env=environment):
        for _ in rounds(seconds):
            source.change()
            mark = f"mark-{time.monotonic_ns()}"
            source.write(f"{source.directory}/{mark}", "wb", 1)
            until("the other folder's copy", lambda: os.path.exists(f"{place}/{mark}"))


def configure_syncthing(path, folder, ids, ports, which):
    with open(path) as file:
        text = file.read()
    devices = "".join(
        f'<device id="{own}" name="{number}"><address>tcp://127.0.0.1:{ports[number]}</address></device>'
        for number, own in enumerate(ids)
    )
    members = "".join(f'<device id="{own}"></device>' for own in ids)
    shared = (
        f'<folder id="shared" label="" path="{folder}" type="sendreceive" rescanIntervalS="2" fsWatcherEnabled="true" '
        f'fsWatcherDelayS="1">{members}</folder>'
    )
    text = re.sub(r"<device .*?</device>", "", text, flags=re.DOTALL)
    text = re.sub(r"<(globalAnnounceEnabled|localAnnounceEnabled|relaysEnabled|natEnabled)>true<", r"<\1>false<", text)
    listen = f"<listenAddress>tcp://127.0.0.1:{ports[which]}</listenAddress>"
    text = re.sub(r"<listenAddress>.*?</listenAddress>", listen, text)
    text = re.sub(r"<address>127\.0\.0\.1:\d+</address>", f"<address>127.0.0.1:{free_port()}</address>", text)
    with open(path, "w") as file:
        file.write(text.replace("<gui ", f"{shared}{devices}<gui ", 1))


def aria2(place, work, seconds):
    """Downloads in pieces, with each way to allocate, interrupted and resumed."""
    need("aria2c")
    source = Source(f"{work}/source", count=1)
    handler = functools.partial(Ranges, directory=source.directory)
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    try:
        for number in rounds(seconds):
            source.write(f"{source.directory}/big-{number}", "wb", 6_000_000)
            for allocation in ("none", "prealloc", "trunc", "falloc"):
                download(f"http://127.0.0.1:{web.server_port}/big-{number}", place, allocation, number)
    finally:
        web.shutdown()
        web.server_close()


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves parts of files, which the library's own handler does not."""

    def do_GET(self):
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "bytes=0-"))
        with open(self.translate_path(self.path), "rb") as file:
            content = file.read()
        first, last = int(asked[1]), int(asked[2] or len(content) - 1)
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        # A client that is killed does not take it all.
        with contextlib.suppress(OSError):
            self.wfile.write(content[first : last + 1])

    def log_message(self, *_):
        pass


def download(url, place, allocation, number):
    command = ["aria2c", "-q", "-c", "-x4", "-s4", "-k1M", f"--file-allocation={allocation}", "--allow-overwrite=true"]
    command += ["-d", place, "-o", f"{allocation}-{number % 3}", url]
    if number % 2:
        slow = subprocess.Popen([*command, "--max-overall-download-limit=5M"], stdin=subprocess.DEVNULL)
        time.sleep(0.4)
        slow.send_signal(signal.SIGKILL)
        slow.wait()
    # It refuses allocations that the file system does not have.
    call(*command, status=(0, 8, 9, 13, 16, 17))


def as_root():
    if os.geteuid() != 0:
        raise Skip("needs root")


WRITERS = {"samba": samba, "vsftpd": vsftpd, "sftp": sftp, "syncthing": syncthing, "aria2": aria2}
