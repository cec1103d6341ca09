module countersign.dev/interop/probe/clients

go 1.25.0
