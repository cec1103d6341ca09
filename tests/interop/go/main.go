// A service and a client on go-spiffe: mTLS over HTTP, identities from the Workload API.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func source(ctx context.Context, id spiffeid.ID) *workloadapi.X509Source {
	src, err := workloadapi.NewX509Source(ctx, workloadapi.WithDefaultX509SVIDPicker(pickID(id)))
	must(err)
	return src
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 120*time.Second)
	defer cancel()
	own := spiffeid.RequireFromString(os.Args[2])
	peer := spiffeid.RequireFromString(os.Args[3])
	src := source(ctx, own)
	defer src.Close()
	switch os.Args[1] {
	case "server":
		serve(src, peer, os.Args[4])
	case "client":
		seconds, err := strconv.Atoi(os.Args[5])
		must(err)
		call(src, peer, os.Args[4], time.Duration(seconds)*time.Second)
	}
}

func serve(src *workloadapi.X509Source, peer spiffeid.ID, address string) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello %s", r.TLS.PeerCertificates[0].URIs[0])
	})
	server := &http.Server{
		Addr:      address,
		Handler:   handler,
		TLSConfig: tlsconfig.MTLSServerConfig(src, src, tlsconfig.AuthorizeID(peer)),
		// One protocol on both sides of the proxy.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	must(server.ListenAndServeTLS("", ""))
}

// call makes a new connection for every request until the time is up and prints what happened.
func call(src *workloadapi.X509Source, peer spiffeid.ID, url string, d time.Duration) {
	serials := map[string]bool{}
	requests, failures, last := 0, 0, ""
	body := ""
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		requests++
		config := tlsconfig.MTLSClientConfig(src, src, tlsconfig.AuthorizeID(peer))
		transport := &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}
		answer, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Get(url)
		if err != nil {
			failures++
			last = err.Error()
			continue
		}
		serials[answer.TLS.PeerCertificates[0].SerialNumber.String()] = true
		text, _ := io.ReadAll(answer.Body)
		answer.Body.Close()
		if answer.StatusCode != 200 {
			failures++
			last = answer.Status + " " + string(text)
		}
		body = string(text)
	}
	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"requests": requests, "failures": failures, "last_failure": last,
		"server_certificates": len(serials), "body": body,
	})
}
