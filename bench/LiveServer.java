// The server of live_server.js for a JVM: java LiveServer.java FILE; its port is written to FILE once it listens.
//
// It answers GET /NUMBER with 20,000 bytes of that number, and keeps what it answers in a cache, which it drops every
// other second: objects of the heap, and direct buffers of malloc's.

import com.sun.net.httpserver.HttpServer;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.Arrays;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;

public final class LiveServer {
    private static final int BYTES = 20000;
    private static volatile ConcurrentLinkedQueue<Object> cache = new ConcurrentLinkedQueue<>();

    public static void main(String[] arguments) throws Exception {
        var clock = Executors.newSingleThreadScheduledExecutor();
        clock.scheduleAtFixedRate(() -> { cache = new ConcurrentLinkedQueue<>(); System.gc(); }, 2, 2, TimeUnit.SECONDS);
        var server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 64);
        server.setExecutor(Executors.newFixedThreadPool(16));
        server.createContext("/", exchange -> {
            var number = Integer.parseInt(exchange.getRequestURI().getPath().substring(1));
            var body = new byte[BYTES];
            Arrays.fill(body, (byte) (number % 251));
            cache.add(body);
            cache.add(ByteBuffer.allocateDirect(BYTES).put(body));
            exchange.sendResponseHeaders(200, BYTES);
            try (var answer = exchange.getResponseBody()) {
                answer.write(body);
            }
        });
        server.start();
        var written = Path.of(arguments[0] + ".part");
        Files.writeString(written, Integer.toString(server.getAddress().getPort()));
        Files.move(written, Path.of(arguments[0]), StandardCopyOption.ATOMIC_MOVE);
    }
}
