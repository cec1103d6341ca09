// Command goserver runs many listeners in one process, each set up as its record says: goserver CONFIG.json.
// Go's net/http and grpc-go over crypto/tls.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

type setup struct {
	Name, Dir, Protocol, Auth, Cert, ID, Headers, Plain string
	Port, Also                                          int
	CRL, Old, Weak                                      bool
	// Where the list is read anew at every handshake: "certificate" (resumed sessions are not looked at),
	// "connection" (they are).
	Live string
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func roots(s setup) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(must(os.ReadFile(s.Dir + "/client-ca.pem")))
	return pool
}

// isRevoked looks at the list as it is now.
func isRevoked(s setup, leaf *x509.Certificate) error {
	block, _ := pem.Decode(must(os.ReadFile(s.Dir + "/live-crl.pem")))
	list := must(x509.ParseRevocationList(block.Bytes))
	for _, revoked := range list.RevokedCertificateEntries {
		if revoked.SerialNumber.Cmp(leaf.SerialNumber) == 0 {
			return errors.New("revoked")
		}
	}
	return nil
}

func config(s setup) *tls.Config {
	cert := must(tls.LoadX509KeyPair(s.Dir+"/"+s.Cert+".pem", s.Dir+"/"+s.Cert+".key"))
	out := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, ClientCAs: roots(s)}
	if s.Old {
		// countersign:allow weak-cert reason=the set-up whose flaw this is
		out.MinVersion = tls.VersionTLS10
		out.CipherSuites = []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}
	}
	if s.Weak {
		out.CipherSuites = []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_RC4_128_SHA, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}
	}
	switch s.Auth {
	case "not-asked":
		out.ClientAuth = tls.NoClientCert
	case "optional":
		out.ClientAuth = tls.VerifyClientCertIfGiven
	case "any-cert":
		out.ClientAuth = tls.RequireAnyClientCert
	case "expired-ok":
		out.ClientAuth = tls.RequireAnyClientCert
		out.VerifyConnection = func(state tls.ConnectionState) error {
			leaf := state.PeerCertificates[0]
			_, err := leaf.Verify(x509.VerifyOptions{Roots: roots(s), CurrentTime: leaf.NotAfter,
				KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
			return err
		}
	default:
		out.ClientAuth = tls.RequireAndVerifyClientCert
	}
	if s.CRL {
		block, _ := pem.Decode(must(os.ReadFile(s.Dir + "/crl.pem")))
		list := must(x509.ParseRevocationList(block.Bytes))
		out.VerifyConnection = func(state tls.ConnectionState) error {
			for _, revoked := range list.RevokedCertificateEntries {
				if revoked.SerialNumber.Cmp(state.PeerCertificates[0].SerialNumber) == 0 {
					return errors.New("revoked")
				}
			}
			return nil
		}
	}
	switch s.Live {
	case "certificate":
		out.VerifyPeerCertificate = func(_ [][]byte, chains [][]*x509.Certificate) error {
			return isRevoked(s, chains[0][0])
		}
	case "connection":
		out.VerifyConnection = func(state tls.ConnectionState) error {
			return isRevoked(s, state.PeerCertificates[0])
		}
	}
	return out
}

func allowed(s setup, state *tls.ConnectionState, header http.Header) bool {
	for _, name := range []string{"X-Forwarded-Client-Cert", "X-Ssl-Client-S-Dn", "X-Forwarded-User"} {
		if s.Headers == "believed" && strings.Contains(header.Get(name), "web") {
			return true
		}
	}
	if state == nil || s.Auth != "strict" && s.Auth != "expired-ok" {
		return true
	}
	leaf := state.PeerCertificates[0]
	return len(leaf.URIs) == 1 && leaf.URIs[0].String() == s.ID && !(s.Auth == "strict" && leaf.IsCA)
}

func handler(s setup) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil && s.Plain == "redirect" {
			http.Redirect(w, r, "https://localhost/", http.StatusMovedPermanently)
			return
		}
		if !allowed(s, r.TLS, r.Header) {
			http.Error(w, "forbidden", http.StatusForbidden)
			return
		}
		if s.Headers == "reflected" {
			_ = json.NewEncoder(w).Encode(r.Header)
			return
		}
		fmt.Fprintln(w, "hello")
	})
}

// front gives TLS to one server and everything else to another, on the same port.
type front struct {
	net.Listener
	tls *tls.Config
}

type peeked struct {
	net.Conn
	reader *bufio.Reader
}

func (p peeked) Read(b []byte) (int, error) { return p.reader.Read(b) }

// first is TLS or not, which is known only once the client has spoken.
type first struct {
	peeked
	config *tls.Config
	chosen net.Conn
}

func (f *first) Read(b []byte) (int, error) {
	if f.chosen == nil {
		begin, err := f.reader.Peek(1)
		if err != nil {
			return 0, err
		}
		f.chosen = f.peeked
		if begin[0] == 0x16 {
			f.chosen = tls.Server(f.peeked, f.config)
		}
	}
	return f.chosen.Read(b)
}

func (f *first) Write(b []byte) (int, error) {
	if f.chosen == nil {
		return 0, io.ErrClosedPipe
	}
	return f.chosen.Write(b)
}

func (f front) Accept() (net.Conn, error) {
	conn, err := f.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &first{peeked: peeked{conn, bufio.NewReader(conn)}, config: f.tls}, nil
}

func serveGRPC(s setup, listener net.Listener) {
	judge := func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		caller, _ := peer.FromContext(ctx)
		state := caller.AuthInfo.(credentials.TLSInfo).State
		if !allowed(s, &state, nil) {
			return nil, status.Error(codes.PermissionDenied, "not you")
		}
		return next(ctx, request)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(config(s))), grpc.UnaryInterceptor(judge))
	healthpb.RegisterHealthServer(server, health.NewServer())
	log.Fatal(server.Serve(listener))
}

func main() {
	log.SetFlags(log.Lmicroseconds)
	var setups []setup
	if err := json.Unmarshal(must(os.ReadFile(os.Args[1])), &setups); err != nil {
		log.Fatal(err)
	}
	listen := func(port int) net.Listener { return must(net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))) }
	for _, s := range setups {
		if s.Also != 0 {
			go func() { log.Fatal(http.Serve(listen(s.Also), handler(s))) }()
		}
		listener := listen(s.Port)
		if s.Protocol == "grpc" {
			go serveGRPC(s, listener)
			continue
		}
		server := &http.Server{Handler: handler(s)}
		if s.Plain == "same" {
			go func() { log.Fatal(server.Serve(front{listener, config(s)})) }()
			continue
		}
		server.TLSConfig = config(s)
		go func() { log.Fatal(server.ServeTLS(listener, "", "")) }()
	}
	select {}
}
