// Answers lines of seed and rounds, with a thread per connection. Beside them threads keep the compiler and the collector busy, and
// check their own results.
import java.io.BufferedReader;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.SocketAddress;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.Channels;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.HexFormat;
import java.util.TreeMap;

public class Chains {
    static String chain(String seed, int rounds) throws Exception {
        byte[] digest = seed.getBytes(StandardCharsets.US_ASCII);
        MessageDigest sha = MessageDigest.getInstance("SHA-256");
        for (int i = 0; i < rounds; i++) digest = sha.digest(digest);
        return HexFormat.of().formatHex(digest);
    }

    static void serve(SocketChannel channel) {
        try (BufferedReader reader = new BufferedReader(Channels.newReader(channel, StandardCharsets.US_ASCII))) {
            for (String line; (line = reader.readLine()) != null;) {
                String[] words = line.split(" ");
                ByteBuffer answer = ByteBuffer.wrap((chain(words[0], Integer.parseInt(words[1])) + "\n").getBytes());
                while (answer.hasRemaining()) channel.write(answer);
            }
        } catch (IOException ended) {
            // the client is gone
        } catch (Exception wrong) {
            wrong.printStackTrace();
            System.exit(1);
        }
    }

    static void keepBusy(int number) {
        long expected = 0;
        for (long round = 0;; round++) {
            TreeMap<Long, byte[]> map = new TreeMap<>();
            long value = number, sum = 0;
            for (int i = 0; i < 20_000; i++) {
                value = value * 6364136223846793005L + 1442695040888963407L;
                map.put(value >>> 40, new byte[(int) (value >>> 58)]);
            }
            for (var entry : map.entrySet()) sum = sum * 31 + entry.getKey() + entry.getValue().length;
            if (round > 0 && sum != expected) {
                System.out.println("wrong: " + sum + " instead of " + expected);
                System.exit(1);
            }
            expected = sum;
        }
    }

    public static void main(String[] arguments) throws Exception {
        String[] words = arguments[0].split(":");
        boolean unix = words[0].equals("unix");
        SocketAddress address = unix ? UnixDomainSocketAddress.of(words[1]) : new InetSocketAddress(words[1], Integer.parseInt(words[2]));
        ServerSocketChannel server = unix ? ServerSocketChannel.open(StandardProtocolFamily.UNIX) : ServerSocketChannel.open();
        server.bind(address);
        for (int i = 0; i < 2; i++) {
            int number = i;
            new Thread(() -> keepBusy(number)).start();
        }
        while (true) {
            SocketChannel channel = server.accept();
            new Thread(() -> serve(channel)).start();
        }
    }
}
