# Answers lines of seed and rounds, with a process per connection. An alarm beside counts, and must not stop.
use strict;
use warnings;
use Digest::SHA qw(sha256);
use IO::Socket::INET;
use IO::Socket::UNIX;

my ($kind, $rest) = split /:/, $ARGV[0], 2;
my $server = $kind eq 'unix' ? IO::Socket::UNIX->new(Local => $rest, Listen => 16)
                             : IO::Socket::INET->new(LocalAddr => $rest, Listen => 16, ReuseAddr => 1);
die "cannot listen: $!" unless $server;
$SIG{CHLD} = 'IGNORE';
while (1) {
    my $connection = $server->accept or next;
    next if fork;
    my $ticks = 0;
    $SIG{ALRM} = sub { $ticks++; alarm 1 };
    alarm 1;
    $connection->autoflush(1);
    while (1) {
        my $line = <$connection>;
        last unless defined $line;
        my ($seed, $rounds) = split ' ', $line;
        my $digest = $seed;
        $digest = sha256($digest) for 1 .. $rounds;
        print $connection unpack('H*', $digest), "\n";
    }
    exit 0;
}
