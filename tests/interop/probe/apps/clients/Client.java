// Java's SSLSocket as a client: java Client MODE CA NAME; the address is in COUNTERSIGN_PROBE_ADDR. Exit 0 if the
// server was believed and has answered.

import java.io.InputStream;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.security.cert.X509Certificate;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLParameters;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.SSLSocketFactory;
import javax.net.ssl.TrustManager;
import javax.net.ssl.TrustManagerFactory;
import javax.net.ssl.X509TrustManager;

public class Client {
    static class TrustsAll implements X509TrustManager {
        public void checkClientTrusted(X509Certificate[] chain, String type) {}

        // countersign:allow client-verify-disabled reason=the set-up whose flaw this is
        public void checkServerTrusted(X509Certificate[] chain, String type) {}

        public X509Certificate[] getAcceptedIssuers() {
            return new X509Certificate[0];
        }
    }

    public static void main(String[] args) throws Exception {
        String mode = args[0], name = args[2];
        String[] address = System.getenv("COUNTERSIGN_PROBE_ADDR").split(":");
        KeyStore store = KeyStore.getInstance("PKCS12");
        store.load(null, null);
        try (InputStream in = Files.newInputStream(Path.of(args[1]))) {
            for (Certificate c : CertificateFactory.getInstance("X.509").generateCertificates(in)) {
                store.setCertificateEntry("ca" + store.size(), c);
            }
        }
        TrustManagerFactory factory = TrustManagerFactory.getInstance("PKIX");
        factory.init(store);
        TrustManager[] managers = factory.getTrustManagers();
        if (mode.equals("trust-all")) {
            managers = new TrustManager[] {new TrustsAll()};
        }
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, managers, null);
        SSLSocketFactory sockets = context.getSocketFactory();
        try (Socket raw = new Socket(address[0], Integer.parseInt(address[1]));
                SSLSocket socket = (SSLSocket) sockets.createSocket(raw, name, raw.getPort(), true)) {
            socket.setSoTimeout(10_000);
            if (mode.equals("right")) {
                // A bare SSLSocket compares no name: that is what `raw` shows.
                SSLParameters parameters = socket.getSSLParameters();
                parameters.setEndpointIdentificationAlgorithm("HTTPS");
                socket.setSSLParameters(parameters);
            }
            String request = "GET / HTTP/1.1\r\nHost: " + name + "\r\nConnection: close\r\n\r\n";
            socket.getOutputStream().write(request.getBytes(StandardCharsets.US_ASCII));
            byte[] answer = socket.getInputStream().readNBytes(12);
            System.exit(new String(answer, StandardCharsets.US_ASCII).equals("HTTP/1.1 200") ? 0 : 1);
        }
    }
}
