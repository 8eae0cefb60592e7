<?php
// Answers lines of seed and rounds: one process, all connections in one select.
[$kind, $rest] = explode(':', $argv[1], 2);
$server = stream_socket_server(($kind === 'unix' ? 'unix://' : 'tcp://') . $rest);
$clients = [];
while (true) {
    $ready = [$server, ...$clients];
    $none = null;
    stream_select($ready, $none, $none, null);
    foreach ($ready as $stream) {
        if ($stream === $server) {
            $client = stream_socket_accept($server);
            $clients[(int) $client] = $client;
            continue;
        }
        $line = fgets($stream);
        if ($line === false) {
            unset($clients[(int) $stream]);
            continue;
        }
        [$digest, $rounds] = explode(' ', trim($line));
        for ($i = 0; $i < (int) $rounds; $i++) {
            $digest = hash('sha256', $digest, true);
        }
        fwrite($stream, bin2hex($digest) . "\n");
    }
}
