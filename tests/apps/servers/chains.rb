# Answers lines of seed and rounds, with a thread per connection; the long ones go to a child behind pipes.
require 'digest'
require 'socket'

def chain(seed, rounds)
  digest = seed
  rounds.times { digest = Digest::SHA256.digest(digest) }
  digest.unpack1('H*')
end

questions, to_child = IO.pipe
from_child, answers = IO.pipe
fork do
  to_child.close
  answers.sync = true
  while (line = questions.gets)
    seed, rounds = line.split
    answers.puts chain(seed, rounds.to_i)
  end
end
questions.close
to_child.sync = true
child = Mutex.new

kind, rest = ARGV[0].split(':', 2)
server = kind == 'unix' ? UNIXServer.new(rest) : TCPServer.new(*rest.split(':'))
loop do
  Thread.new(server.accept) do |connection|
    while (line = connection.gets)
      seed, rounds = line.split
      if rounds.to_i < 1000
        connection.puts chain(seed, rounds.to_i)
      else
        connection.puts(child.synchronize { to_child.puts line; from_child.gets })
      end
    end
  end
end
