"""Servers, with a client that is connected all the time (tests/apps/client).

Over TCP the client stays outside of the tree: it must notice nothing but a pause. A connection over a unix socket to somebody outside
ends with the tree (nothing in the kernel keeps it), so there the client is part of the tree.
"""
import json
import os
import re
import socket
import subprocess
import time

import cycle

HERE = os.path.dirname(os.path.abspath(__file__))
AS_POSTGRES = "setpriv --reuid postgres --regid postgres --clear-groups"
POSTGRES = "/usr/lib/postgresql/15/bin"

SSHD = dict(
    needs=["sshd", "ssh", "ssh-keygen"], transports=["tcp"],
    prepare="""mkdir -p /run/sshd
        for name in host user; do ssh-keygen -q -t ed25519 -N '' -f $name; done
        echo "stasis $(cut -d' ' -f1,2 host.pub)" >known; cp user.pub authorized""",
    server="""exec /usr/sbin/sshd -D -e -f /dev/null -h $PWD/host -p $PORT -o ListenAddress=127.0.0.1 -o PidFile=none \
        -o AuthorizedKeysFile=$PWD/authorized -o StrictModes=no""")

# A service is a shell script that prepares, one that becomes the server, and one that looks at what is left when all is over. In them
# $ADDRESS is the server's path, or $PORT its port; `listen` says for both how the server is told ($LISTEN). `options` are what stasis needs
# for it, and `caught` are processes that must be there, by name and number, at a dump that counts.
SERVICES = {
    "redis": dict(
        protocol="redis", needs=["redis-server"],
        listen=dict(unix="--port 0 --unixsocket $ADDRESS", tcp="--bind 127.0.0.1 --port $PORT"),
        # Saving takes at least a second, so that the child that does it is there most of the time.
        server="exec redis-server $LISTEN --dir $PWD --save '' --appendonly yes --rdb-key-save-delay 2000 --loglevel verbose",
        caught={"redis-server": 2},
        after="redis-check-rdb dump.rdb && redis-check-aof appendonlydir/*.manifest"),
    "memcached": dict(
        protocol="memcached", needs=["memcached"],
        listen=dict(unix="-s $ADDRESS", tcp="-l 127.0.0.1 -p $PORT"),
        server="exec memcached $LISTEN -u root -t 4 -m 200 -vv"),
    "nginx": dict(
        protocol="nginx", needs=["nginx"],
        prepare="""mkdir -p www/pages www/slow
            for n in $(seq 0 9); do for i in $(seq 10); do echo page $n; done >www/pages/$n; done
            head -c 3000000 /dev/urandom >www/slow/big; sha256sum www/slow/big >big.sum
            cat >nginx.conf <<END
worker_processes 2; daemon off; error_log $PWD/error.log info; pid $PWD/nginx.pid;
events { worker_connections 64; }
http {
    access_log $PWD/access.log; client_body_temp_path $PWD/t1; proxy_temp_path $PWD/t2; fastcgi_temp_path $PWD/t3;
    uwsgi_temp_path $PWD/t4; scgi_temp_path $PWD/t5; sendfile on; keepalive_requests 100000000; keepalive_timeout 1h;
    upstream behind { server unix:$PWD/behind.sock; keepalive 4; }
    server {
        listen $LISTEN; root $PWD/www;
        location /slow { limit_rate 1m; }
        location /proxied/ { proxy_pass http://behind/pages/; proxy_http_version 1.1; proxy_set_header Connection ""; }
    }
    server { listen unix:$PWD/behind.sock; root $PWD/www; }
}
END""",
        listen=dict(unix="unix:$ADDRESS", tcp="127.0.0.1:$PORT"),
        server="exec nginx -p $PWD -e stderr -c $PWD/nginx.conf",
        after="! grep -E 'alert|crit|emerg' error.log"),
    "postgres": dict(
        protocol="postgres", needs=[f"{POSTGRES}/postgres", "psql"],
        prepare=f"""mkdir db; chown postgres db .
            {AS_POSTGRES} {POSTGRES}/initdb -D db -A trust -N
            echo "create table accounts (id int primary key, balance int); insert into accounts select g, 100 from generate_series(1, 10) g;
                  create table history (who int, debited int, credited int, amount int);
                  create table words as select md5(g::text) as text from generate_series(1, 20000) g;" >schema.sql
            chmod 644 schema.sql
            {AS_POSTGRES} sh -c '{POSTGRES}/postgres --single -j -D db postgres <schema.sql'""",
        address=".s.PGSQL.5432",
        listen=dict(unix="-c listen_addresses=", tcp="-c listen_addresses=127.0.0.1 -p $PORT"),
        server=f"exec {AS_POSTGRES} {POSTGRES}/postgres -D db -k $PWD $LISTEN -c checkpoint_timeout=30s -c fsync=off",
        after=f"""echo 'select sum(balance) from accounts' | {AS_POSTGRES} {POSTGRES}/postgres --single -D db postgres | grep 'sum = "1000"'"""),
    "mariadb": dict(
        protocol="mariadb", needs=["mariadbd", "mariadb", "mariadb-install-db"],
        prepare="""mariadb-install-db --no-defaults --user=root --datadir=$PWD/db --auth-root-authentication-method=normal --skip-test-db
            { echo "create database work;"; echo "use work;"
              echo "create table accounts (id int primary key, balance int) engine=innodb; "
              echo "insert into accounts select seq, 100 from seq_1_to_10;"
              echo "create table history (who int, debited int, credited int, amount int) engine=innodb;"
              echo "create table words engine=innodb as select md5(seq) as t from seq_1_to_5000;"
            } | mariadbd --no-defaults --user=root --datadir=$PWD/db --bootstrap""",
        listen=dict(unix="--socket=$ADDRESS --skip-networking", tcp="--socket=$PWD/local.sock --bind-address=127.0.0.1 --port=$PORT"),
        # Its own locks of files are known to nobody else; without native AIO no io_uring is needed.
        options=["--file-locks"],
        server="""exec mariadbd --no-defaults --user=root --datadir=$PWD/db --tmpdir=$PWD $LISTEN --innodb-use-native-aio=0 \
            --innodb-flush-log-at-trx-commit=0 --innodb-buffer-pool-size=16M --innodb-log-file-size=8M"""),
    "tls": dict(
        protocol="tls", needs=["openssl"], transports=["tcp"],  # over a path, s_server cannot print who has come, and ends
        prepare="openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out certificate.pem -subj /CN=stasis",
        server="exec openssl s_server -accept 127.0.0.1:$PORT -cert certificate.pem -key key.pem -rev"),
    # Each of the two processes binds a name, and renames the file when it is ready to take over from its predecessor.
    "haproxy": dict(
        protocol="chains", needs=["haproxy"],
        prepare="""cat >haproxy.cfg <<END
global
    nbthread 2
    stats socket $PWD/control.sock level admin
defaults
    mode tcp
    timeout connect 1m
    timeout client 1h
    timeout server 1h
frontend front
    bind $LISTEN
    default_backend behind
backend behind
    server one unix@$PWD/behind.sock
END""",
        listen=dict(unix="unix@$ADDRESS", tcp="127.0.0.1:$PORT"),
        server=f"python3 {HERE}/servers/chains.py unix:$PWD/behind.sock & until [ -S behind.sock ]; do sleep 0.1; done; exec haproxy -W -db -f haproxy.cfg"),
    "caddy": dict(
        protocol="pages", needs=["caddy"],
        prepare="""mkdir -p www/pages
            for n in $(seq 0 9); do for i in $(seq 10); do echo page $n; done >www/pages/$n; done
            printf '{\n admin off\n auto_https off\n}\n%s {\n bind %s\n root * %s/www\n file_server\n}\n' $LISTEN $PWD >Caddyfile""",
        listen=dict(unix="http://stasis unix/$ADDRESS", tcp="http://:$PORT 127.0.0.1"),
        server="HOME=$PWD exec caddy run --config Caddyfile --adapter caddyfile"),
    # Three panes: a shell, an editor, and a program that goes on by itself; and somebody who is attached, through a terminal of his own.
    "tmux": dict(
        protocol="tmux", needs=["tmux", "vim", "script"], transports=["unix"],
        prepare="touch edited",
        server="""export TERM=screen LANG=C.UTF-8; tmux -S $ADDRESS -f /dev/null -D & server=$!
            until tmux -N -S $ADDRESS new-session -d -s work -x 150 -y 60 'PS1= exec sh'; do sleep 0.1; done
            tmux -S $ADDRESS split-window -t work 'exec vim -u NONE -N edited'
            tmux -S $ADDRESS split-window -t work 'i=0; while :; do i=$((i + 1)); echo tick $i; sleep 0.02; done'
            tmux -S $ADDRESS select-layout -t work even-vertical
            script -qfc "stty rows 60 cols 150; tmux -S $ADDRESS attach -t work" /dev/null </dev/null >attached.log &
            wait $server"""),
    "sshd": dict(protocol="ssh", **SSHD),
    "sshd-terminals": dict(protocol="ssh_terminals", **SSHD),
    "asyncio": dict(protocol="chains", needs=["python3"], server=f"exec python3 {HERE}/servers/chains.py $TARGET"),
    "node": dict(protocol="node", needs=["node"], server=f"exec node {HERE}/servers/chains.js $TARGET"),
    "java": dict(protocol="java", needs=["javac"], prepare=f"javac -d . {HERE}/servers/Chains.java",
                 server="exec java -Xmx96m -cp . Chains $TARGET"),
    "ruby": dict(protocol="chains", needs=["ruby"], server=f"exec ruby {HERE}/servers/chains.rb $TARGET"),
    "perl-server": dict(protocol="chains", needs=["perl"], server=f"exec perl {HERE}/servers/chains.pl $TARGET"),
    # The compiler's cache is locked by a file of its own, which is unlinked.
    "php-server": dict(protocol="chains", needs=["php"], options=["--file-locks"],
                       server=f"exec php -d opcache.enable_cli=1 -d opcache.jit=tracing -d opcache.jit_buffer_size=16M {HERE}/servers/chains.php $TARGET"),
}
JOBS = {f"{name}.{transport}": dict(service, transport=transport)
        for name, service in SERVICES.items() for transport in service.get("transports", ("unix", "tcp"))}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Service:
    def __init__(self, options, job, base):
        self.options, self.job, self.base = options, job, base
        self.inside = job["transport"] == "unix"
        path, port = job.get("address", "server.sock"), free_port()
        self.directory = f"{base}/work"
        self.target = f"unix:{self.directory}/{path}" if self.inside else f"tcp:127.0.0.1:{port}"
        listen = job.get("listen", {}).get(job["transport"], "")
        self.settings = f"ADDRESS=$PWD/{path}; PORT={port}; TARGET={self.target}; LISTEN=\"{listen}\"\n"
        cycle.prepared(base, "work", self.settings + job.get("prepare", ""))
        self.client = None

    def wait_for(self, condition, what, seconds=60):
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise cycle.Failed(f"{what}: not within {seconds} seconds\n{self.told()}")
            if os.path.exists(f"{self.directory}/client.status"):
                raise cycle.Failed(f"the client has ended\n{self.told()}")
            cycle.reap()
            time.sleep(0.02)

    def told(self):
        told = ""
        for name in ("client.log", "server.log"):
            path = f"{self.directory}/{name}"
            told += f"{name}:\n{open(path, errors='replace').read()[-1500:]}\n" if os.path.exists(path) else ""
        return told + f"progress: {self.progress()}"

    def start(self):
        """The root of the tree is a shell that waits for the server, after the client where that is inside."""
        client = f"{HERE}/client {self.job['protocol']} {self.target} >client.log 2>&1; echo $? >client.status\n"
        script = self.settings + f"( {self.job['server']} ) >server.log 2>&1 & server=$!\n"
        if self.inside:
            script += f"{client} kill $server\n"
        self.root = cycle.start(script + "wait $server", self.directory, subprocess.DEVNULL)
        if not self.inside:
            self.client = cycle.start(client, self.directory, subprocess.DEVNULL)
        self.wait_for(lambda: self.has_gone_on({}), "every conversation begins")

    def progress(self):
        try:
            return json.load(open(f"{self.directory}/progress"))
        except FileNotFoundError:
            return {}

    def has_gone_on(self, before):
        now = self.progress()
        return bool(now) and all(count >= before.get(name, 0) + 2 for name, count in now.items())

    def cycle(self, number):
        """The clients must notice neither a dump that lets the server run, nor one that ends it."""
        options = [*self.job.get("options", ()), *([] if self.inside else ["--tcp-established"])]
        for kind, dumped in ("running", cycle.dump_running), ("ended", cycle.dump_and_restore):
            for attempt in range(10):
                images = f"{self.base}/{kind}-{number}-{attempt}"
                dumped(self.options.stasis, self.root, images, options)
                before = self.progress()
                self.wait_for(lambda: self.has_gone_on(before), f"every conversation goes on after dump {number + 1} ({kind})")
                if self.is_caught_at_it(images):
                    break
            else:
                raise cycle.Failed(f"no dump has met {self.job['caught']}")

    def is_caught_at_it(self, images):
        """Whether the dump has met the tree in the state that the job is about."""
        shown = subprocess.run([self.options.stasis, "show", "--tree", images], capture_output=True, text=True, check=True).stdout
        return all(len(re.findall(rf"\d  {name}  group", shown)) >= count for name, count in self.job.get("caught", {}).items())

    def finish(self):
        open(f"{self.directory}/stop", "w").close()
        status = f"{self.directory}/client.status"
        deadline = time.monotonic() + 60
        while not os.path.exists(status) or not open(status).read():
            if time.monotonic() > deadline:
                raise cycle.Failed(f"the client does not end\n{self.told()}")
            time.sleep(0.02)
        if open(status).read() != "0\n":
            raise cycle.Failed(f"the client has found a fault\n{self.told()}")

    def stop(self):
        cycle.kill_tree(self.root)
        if self.client:
            cycle.kill_tree(self.client)

    def look_at_what_is_left(self):
        if after := self.job.get("after"):
            done = subprocess.run(["bash", "-c", self.settings + after], cwd=self.directory, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if done.returncode != 0:
                raise cycle.Failed(f"what the server has left behind is not right\n{done.stdout}{done.stderr}")


def run(options, base):
    service = Service(options, JOBS[options.job], base)
    try:
        service.start()
        for number in range(options.times):
            service.cycle(number)
        service.finish()
    finally:
        service.stop()
    service.look_at_what_is_left()
    exchanges = sum(service.progress().values())
    return f"{len(service.progress())} conversations, {exchanges} exchanges, {options.times} times dumped and left running, dumped and restored, all answers right"
