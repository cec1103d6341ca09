// Command goclient is net/http as a client: goclient MODE CA NAME [SPIFFE-ID]; the address is in
// COUNTERSIGN_PROBE_ADDR. Exit 0 if the server was believed and has answered.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

// chain judges all but the name.
func chain(roots *x509.CertPool, usage x509.ExtKeyUsage, raw [][]byte) (*x509.Certificate, error) {
	// countersign:allow hostname-verify-disabled reason=the chain only is one set-up, the others go on with the ID
	options := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{usage}}
	var leaf *x509.Certificate
	for i, der := range raw {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			leaf = c
		} else {
			options.Intermediates.AddCert(c)
		}
	}
	if leaf == nil {
		return nil, errors.New("no certificate")
	}
	_, err := leaf.Verify(options)
	return leaf, err
}

// spiffe judges as X509-SVID asks: one URI, no CA. go-spiffe looks at no usages.
func spiffe(roots *x509.CertPool, usage x509.ExtKeyUsage, raw [][]byte, is func(id string) bool) error {
	leaf, err := chain(roots, usage, raw)
	if err != nil {
		return err
	}
	if leaf.IsCA || leaf.KeyUsage&x509.KeyUsageCertSign != 0 {
		return errors.New("a CA")
	}
	if len(leaf.URIs) != 1 || !is(leaf.URIs[0].String()) {
		return errors.New("another identity")
	}
	return nil
}

func main() {
	log.SetFlags(0)
	mode, ca, name := os.Args[1], os.Args[2], os.Args[3]
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(must(os.ReadFile(ca)))
	config := &tls.Config{RootCAs: roots, ServerName: name, MinVersion: tls.VersionTLS12}
	verify := func(judge func(raw [][]byte) error) {
		// countersign:allow client-verify-disabled,hostname-verify-disabled reason=judged by hand, wrongly in some set-ups
		config.InsecureSkipVerify = true
		// countersign:allow client-verify-disabled reason=as above
		config.VerifyPeerCertificate = func(raw [][]byte, _ [][]*x509.Certificate) error { return judge(raw) }
	}
	exactly := func(id string) bool { return id == os.Args[4] }
	switch mode {
	case "right", "right-http2":
	case "skip", "skip-http2":
		verify(func([][]byte) error { return nil })
	case "chain-only":
		verify(func(raw [][]byte) error { _, err := chain(roots, x509.ExtKeyUsageServerAuth, raw); return err })
	case "spiffe":
		verify(func(raw [][]byte) error { return spiffe(roots, x509.ExtKeyUsageServerAuth, raw, exactly) })
	case "spiffe-any-usage":
		verify(func(raw [][]byte) error { return spiffe(roots, x509.ExtKeyUsageAny, raw, exactly) })
	case "spiffe-any-id":
		verify(func(raw [][]byte) error {
			return spiffe(roots, x509.ExtKeyUsageServerAuth, raw,
				func(id string) bool { return strings.HasPrefix(id, "spiffe://") })
		})
	default:
		log.Fatalf("unknown mode %q", mode)
	}
	transport := &http.Transport{
		TLSClientConfig:   config,
		ForceAttemptHTTP2: strings.HasSuffix(mode, "-http2"),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", os.Getenv("COUNTERSIGN_PROBE_ADDR"))
		},
	}
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	answer := must(client.Get("https://" + name + "/"))
	if answer.StatusCode != http.StatusOK {
		log.Fatal(answer.Status)
	}
}
