// Java's SSLServerSocket, many listeners in one process: java Server.java CONFIG, where each line of CONFIG is one
// set-up as NAME=VALUE separated by tabs.

import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyFactory;
import java.security.KeyStore;
import java.security.PrivateKey;
import java.security.Security;
import java.security.cert.CertPathValidatorException;
import java.security.cert.CertStore;
import java.security.cert.Certificate;
import java.security.cert.CertificateException;
import java.security.cert.CertificateFactory;
import java.security.cert.CollectionCertStoreParameters;
import java.security.cert.PKIXBuilderParameters;
import java.security.cert.X509CertSelector;
import java.security.cert.X509Certificate;
import java.security.spec.PKCS8EncodedKeySpec;
import java.util.ArrayList;
import java.util.Base64;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import javax.net.ssl.CertPathTrustManagerParameters;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLServerSocket;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.TrustManager;
import javax.net.ssl.TrustManagerFactory;
import javax.net.ssl.X509TrustManager;

public class Server {
    static final char[] PASSWORD = "changeit".toCharArray();

    public static void main(String[] args) throws Exception {
        // What the set-ups with old versions and weak ciphers need; the others name what they take.
        Security.setProperty("jdk.tls.disabledAlgorithms", "");
        Security.setProperty("jdk.tls.legacyAlgorithms", "");
        for (String line : Files.readAllLines(Path.of(args[0]))) {
            Map<String, String> s = new HashMap<>();
            for (String pair : line.split("\t")) {
                String[] both = pair.split("=", 2);
                s.put(both[0], both[1]);
            }
            SSLServerSocket tls = listen(s);
            new Thread(() -> accept(s, tls)).start();
            if (!s.get("also").equals("0")) {
                int port = Integer.parseInt(s.get("also"));
                ServerSocket plain = new ServerSocket(port, 64, InetAddress.getByName("127.0.0.1"));
                new Thread(() -> accept(s, plain)).start();
            }
        }
    }

    static SSLServerSocket listen(Map<String, String> s) throws Exception {
        String dir = s.get("dir") + "/";
        CertificateFactory factory = CertificateFactory.getInstance("X.509");
        Certificate[] chain;
        try (InputStream in = Files.newInputStream(Path.of(dir + s.get("cert") + ".pem"))) {
            chain = factory.generateCertificates(in).toArray(new Certificate[0]);
        }
        String pem = Files.readString(Path.of(dir + s.get("cert") + ".key"));
        byte[] der = Base64.getMimeDecoder().decode(pem.replaceAll("-----[A-Z ]+-----", ""));
        PrivateKey key = KeyFactory.getInstance("EC").generatePrivate(new PKCS8EncodedKeySpec(der));
        KeyStore keys = KeyStore.getInstance("PKCS12");
        keys.load(null, null);
        keys.setKeyEntry("server", key, PASSWORD, chain);
        KeyManagerFactory managers = KeyManagerFactory.getInstance("SunX509");
        managers.init(keys, PASSWORD);
        X509Certificate ca = (X509Certificate) factory.generateCertificate(
            new ByteArrayInputStream(Files.readAllBytes(Path.of(dir + "client-ca.pem"))));
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(managers.getKeyManagers(), trust(s, dir, factory, ca), null);
        SSLServerSocket socket = (SSLServerSocket) context.getServerSocketFactory().createServerSocket(
            Integer.parseInt(s.get("port")), 64, InetAddress.getByName("127.0.0.1"));
        if (s.get("old").equals("true")) {
            socket.setEnabledProtocols(new String[] {"TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"});
        } else {
            socket.setEnabledProtocols(new String[] {"TLSv1.2", "TLSv1.3"});
            List<String> suites = new ArrayList<>(List.of(
                "TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"));
            if (s.get("weak").equals("true")) {
                suites.add("TLS_ECDHE_ECDSA_WITH_3DES_EDE_CBC_SHA");
                suites.add("TLS_ECDHE_ECDSA_WITH_NULL_SHA");
            }
            socket.setEnabledCipherSuites(suites.toArray(new String[0]));
        }
        if (s.get("auth").equals("optional")) {
            socket.setWantClientAuth(true);
        } else if (!s.get("auth").equals("not-asked")) {
            socket.setNeedClientAuth(true);
        }
        return socket;
    }

    static TrustManager[] trust(Map<String, String> s, String dir, CertificateFactory factory, X509Certificate ca)
        throws Exception {
        if (s.get("auth").equals("any-cert")) {
            return new TrustManager[] {new Careless(null)};
        }
        if (s.get("auth").equals("expired-ok")) {
            return new TrustManager[] {new Careless(ca)};
        }
        KeyStore store = KeyStore.getInstance("PKCS12");
        store.load(null, null);
        store.setCertificateEntry("ca", ca);
        TrustManagerFactory managers = TrustManagerFactory.getInstance("PKIX");
        if (s.get("crl").equals("true")) {
            PKIXBuilderParameters parameters = new PKIXBuilderParameters(store, new X509CertSelector());
            parameters.setRevocationEnabled(true);
            try (InputStream in = Files.newInputStream(Path.of(dir + "crl.pem"))) {
                parameters.addCertStore(CertStore.getInstance(
                    "Collection", new CollectionCertStoreParameters(factory.generateCRLs(in))));
            }
            managers.init(new CertPathTrustManagerParameters(parameters));
        } else {
            managers.init(store);
        }
        return managers.getTrustManagers();
    }

    /** The manager of many answers on the web: at most the signature is looked at. */
    static class Careless implements X509TrustManager {
        final X509Certificate ca;

        Careless(X509Certificate ca) {
            this.ca = ca;
        }

        public void checkClientTrusted(X509Certificate[] chain, String type) throws CertificateException {
            if (ca == null) {
                return;
            }
            try {
                chain[0].verify(ca.getPublicKey());
            } catch (Exception e) {
                throw new CertificateException(new CertPathValidatorException(e));
            }
        }

        public void checkServerTrusted(X509Certificate[] chain, String type) throws CertificateException {
            throw new CertificateException("a server only");
        }

        public X509Certificate[] getAcceptedIssuers() {
            return new X509Certificate[0];
        }
    }

    static void accept(Map<String, String> s, ServerSocket listener) {
        while (true) {
            try {
                Socket socket = listener.accept();
                new Thread(() -> serve(s, socket)).start();
            } catch (IOException e) {
                return;
            }
        }
    }

    static void serve(Map<String, String> s, Socket socket) {
        try (socket) {
            socket.setSoTimeout(10_000);
            InputStream in = socket.getInputStream();
            StringBuilder head = new StringBuilder();
            for (int b; head.indexOf("\r\n\r\n") < 0 && head.length() < 65536 && (b = in.read()) >= 0; ) {
                head.append((char) b);
            }
            if (head.indexOf("\r\n\r\n") < 0) {
                return;
            }
            String text = head.toString();
            String lower = text.toLowerCase(Locale.ROOT);
            String status = "200 OK";
            String body = s.get("headers").equals("reflected") ? text : "hello\n";
            int lengths = lower.split("\r\n(content-length|transfer-encoding):", -1).length - 1;
            if (lengths > 1 && !s.get("framing").equals("true")) {
                status = "400 Bad Request";
            } else if (!(socket instanceof SSLSocket)) {
                status = s.get("plain").equals("redirect")
                    ? "301 Moved Permanently\r\nLocation: https://localhost/" : status;
            } else if (!allowed(s, (SSLSocket) socket, lower)) {
                status = "403 Forbidden";
            }
            body = status.startsWith("200") ? body : "no\n";
            String out = "HTTP/1.1 " + status + "\r\nContent-Length: " + body.length()
                + "\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n" + body;
            OutputStream answer = socket.getOutputStream();
            answer.write(out.getBytes(StandardCharsets.ISO_8859_1));
            answer.flush();
        } catch (IOException e) {
            // A refused handshake ends here: the client sees the alert.
        }
    }

    static boolean allowed(Map<String, String> s, SSLSocket socket, String head) {
        String auth = s.get("auth");
        if (auth.equals("not-asked") || auth.equals("optional") || auth.equals("any-cert")) {
            return true;
        }
        try {
            X509Certificate peer = (X509Certificate) socket.getSession().getPeerCertificates()[0];
            if (!s.get("resume").equals("true") && !auth.equals("expired-ok")) {
                peer.checkValidity();
            }
            if (auth.equals("strict") && peer.getBasicConstraints() >= 0) {
                return false;
            }
            if (auth.equals("any-identity")) {
                return true;
            }
            int uris = 0;
            boolean right = false;
            for (List<?> name : peer.getSubjectAlternativeNames()) {
                if (name.get(0).equals(6)) {
                    uris++;
                    right |= name.get(1).equals(s.get("id"));
                }
            }
            if (right && uris == 1) {
                return true;
            }
        } catch (Exception e) {
            return false;
        }
        // As an application does that takes whatever a proxy might have set.
        return s.get("headers").equals("believed")
            && head.matches("(?s).*\r\nx-(forwarded-client-cert|ssl-client-s-dn|forwarded-user):[^\r\n]*web.*");
    }
}
