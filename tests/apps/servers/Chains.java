// Answers lines of seed and rounds, with a thread per connection, and how much has been compiled, collected and loaded so far. Beside them
// threads keep the collector busy, and write, compile, load and run classes that are new to the just-in-time compiler; they check
// their own results.
import java.io.BufferedReader;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.net.InetSocketAddress;
import java.net.SocketAddress;
import java.net.StandardProtocolFamily;
import java.net.URI;
import java.net.URL;
import java.net.URLClassLoader;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.Channels;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.HexFormat;
import java.util.List;
import java.util.TreeMap;
import java.util.function.LongUnaryOperator;
import javax.tools.JavaCompiler;
import javax.tools.SimpleJavaFileObject;
import javax.tools.ToolProvider;

public class Chains {
    static String chain(String seed, int rounds) throws Exception {
        byte[] digest = seed.getBytes(StandardCharsets.US_ASCII);
        MessageDigest sha = MessageDigest.getInstance("SHA-256");
        for (int i = 0; i < rounds; i++) digest = sha.digest(digest);
        return HexFormat.of().formatHex(digest);
    }

    static String answer(String line) throws Exception {
        switch (line) {
            case "compiled":
                return String.valueOf(ManagementFactory.getCompilationMXBean().getTotalCompilationTime());
            case "collected":
                return String.valueOf(ManagementFactory.getGarbageCollectorMXBeans().stream().mapToLong(bean -> bean.getCollectionCount()).sum());
            case "loaded":
                return String.valueOf(ManagementFactory.getClassLoadingMXBean().getTotalLoadedClassCount());
            default:
                String[] words = line.split(" ");
                return chain(words[0], Integer.parseInt(words[1]));
        }
    }

    static void serve(SocketChannel channel) {
        try (BufferedReader reader = new BufferedReader(Channels.newReader(channel, StandardCharsets.US_ASCII))) {
            for (String line; (line = reader.readLine()) != null;) {
                ByteBuffer answer = ByteBuffer.wrap((answer(line) + "\n").getBytes());
                while (answer.hasRemaining()) channel.write(answer);
            }
        } catch (IOException ended) {
            // the client is gone
        } catch (Exception wrong) {
            fail(wrong);
        }
    }

    static void fail(Exception wrong) {
        wrong.printStackTrace();
        System.exit(1);
    }

    static void require(long got, long expected, String what) {
        if (got != expected) fail(new IllegalStateException(what + ": " + got + " instead of " + expected));
    }

    static void keepCollectorBusy() {
        long expected = 0;
        for (long round = 0;; round++) {
            TreeMap<Long, byte[]> map = new TreeMap<>();
            long value = 1, sum = 0;
            for (int i = 0; i < 20_000; i++) {
                value = value * 6364136223846793005L + 1442695040888963407L;
                map.put(value >>> 40, new byte[(int) (value >>> 58)]);
            }
            for (var entry : map.entrySet()) sum = sum * 31 + entry.getKey() + entry.getValue().length;
            if (round > 0) require(sum, expected, "the sum of the map");
            expected = sum;
        }
    }

    static LongUnaryOperator compiled(Path folder, long factor) throws Exception {
        String name = "Factor" + factor;
        String source = "public class " + name + " implements java.util.function.LongUnaryOperator {\n"
            + "    public long applyAsLong(long n) { long sum = 0; for (long i = 0; i < n; i++) sum += i * " + factor + "; return sum; }\n}\n";
        var file = new SimpleJavaFileObject(URI.create("string:///" + name + ".java"), javax.tools.JavaFileObject.Kind.SOURCE) {
            @Override public CharSequence getCharContent(boolean ignored) { return source; }
        };
        JavaCompiler compiler = ToolProvider.getSystemJavaCompiler();
        if (!compiler.getTask(null, null, null, List.of("-d", folder.toString()), null, List.of(file)).call()) throw new IllegalStateException(source);
        try (URLClassLoader loader = new URLClassLoader(new URL[] {folder.toUri().toURL()})) {
            return (LongUnaryOperator) loader.loadClass(name).getDeclaredConstructor().newInstance();
        } finally {
            Files.delete(folder.resolve(name + ".class"));
        }
    }

    static void keepCompilerBusy() {
        try {
            Path folder = Files.createDirectories(Path.of("classes"));
            for (long factor = 1;; factor++) {
                LongUnaryOperator operator = compiled(folder, factor);
                // Often enough for the optimising compiler.
                for (int i = 0; i < 300; i++) require(operator.applyAsLong(1000), 499_500 * factor, "the sum of a new class");
            }
        } catch (Exception wrong) {
            fail(wrong);
        }
    }

    public static void main(String[] arguments) throws Exception {
        String[] words = arguments[0].split(":");
        boolean unix = words[0].equals("unix");
        SocketAddress address = unix ? UnixDomainSocketAddress.of(words[1]) : new InetSocketAddress(words[1], Integer.parseInt(words[2]));
        ServerSocketChannel server = unix ? ServerSocketChannel.open(StandardProtocolFamily.UNIX) : ServerSocketChannel.open();
        server.bind(address);
        new Thread(Chains::keepCollectorBusy).start();
        new Thread(Chains::keepCompilerBusy).start();
        while (true) {
            SocketChannel channel = server.accept();
            new Thread(() -> serve(channel)).start();
        }
    }
}
