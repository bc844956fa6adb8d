#!/bin/sh
# Makes the golden certificates beside this file with nothing but openssl, so that our reader meets bytes that our
# writer never touched: root (P-384) -> issuing CA (P-256, name constraints, RFC 3779 block) -> device. Keys are thrown
# away. Run `make.sh DIR`; the .pem files appear in DIR. Made with OpenSSL 3.0.
set -eu
cd "$1"

cat > vectors.cnf <<'CNF'
[req]
distinguished_name = dn
prompt = no
[dn]
CN = certpeer vectors

[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
sbgp-ipAddrBlock = IPv4:0.0.0.0/0, IPv6:0::/0

[issuing]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
extendedKeyUsage = clientAuth, 1.3.6.1.4.1.32473.51820.3.1
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
nameConstraints = critical, permitted;URI:default.certpeer.test
sbgp-ipAddrBlock = IPv4:10.88.0.0/16, IPv6:fd00:0:0:1::/64, IPv6:fd00:0:0:ff::/64
crlDistributionPoints = URI:http://pki.certpeer.test/crl/root.crl

# The last address ends in the first 64 bits of SHA-256 of the WireGuard key, which is the public key of 01...01:
#   printf %s pOCSkraZjOHuCDTnxH8qBTVzL4kQhAS9jxXKDTkT5VQ= | base64 -d | sha256sum | cut -c1-16
[device]
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth, 1.3.6.1.4.1.32473.51820.3.1
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = URI:spiffe://default.certpeer.test/network/default/device/d1
sbgp-ipAddrBlock = IPv4:10.88.0.2, IPv6:fd00:0:0:1::2, IPv6:fd00:0:0:ff:9ed4:d8e9:3902:bc9e
crlDistributionPoints = URI:http://pki.certpeer.test/crl/default.crl
authorityInfoAccess = OCSP;URI:http://pki.certpeer.test/ocsp/default, caIssuers;URI:http://pki.certpeer.test/certs/default.crt
1.3.6.1.4.1.32473.51820.1 = ASN1:SEQUENCE:wireguard_key
1.3.6.1.4.1.32473.51820.2 = ASN1:SEQUENCE:groups

[wireguard_key]
publicKey = FORMAT:HEX, OCTETSTRING:a4e09292b6998ce1ee0834e7c47f2a0535732f89108404bd8f15ca0d3913e554
possession = OID:1.3.6.1.4.1.32473.51820.5.1
[groups]
g1 = UTF8:admins
g2 = UTF8:staff

# Forms that our reader must refuse.
[inherit]
sbgp-ipAddrBlock = IPv4:inherit
[range]
sbgp-ipAddrBlock = IPv4:10.88.0.2-10.88.0.4
[safi]
sbgp-ipAddrBlock = IPv4-SAFI:1:10.88.0.0/16
[excluded]
nameConstraints = critical, excluded;URI:default.certpeer.test
[permitted-dns]
nameConstraints = critical, permitted;URI:default.certpeer.test, permitted;DNS:certpeer.test
CNF

openssl ecparam -name P-384 -genkey -noout -out root.key
openssl ecparam -name P-256 -genkey -noout -out issuing.key
openssl ecparam -name P-256 -genkey -noout -out device.key

openssl req -x509 -config vectors.cnf -extensions root -key root.key -sha384 -days 7300 -subj '/O=certpeer/CN=vector root' -out root.pem

# sign NAME SUBJECT SECTION CA DIGEST
sign() {
  openssl req -new -config vectors.cnf -key "$1.key" -subj "$2" -out "$1.csr"
  openssl x509 -req -in "$1.csr" -CA "$4.pem" -CAkey "$4.key" -"$5" -days 7000 \
    -set_serial "0x$(openssl rand -hex 16 | sed 's/^./7/')" -extfile vectors.cnf -extensions "$3" -out "$1.pem"
}
sign issuing '/O=certpeer/CN=vector devices' issuing root sha384
sign device '/CN=laptop' device issuing sha256
for section in inherit range safi excluded permitted-dns; do
  cp device.key "$section.key"
  sign "$section" '/CN=refused' "$section" issuing sha256
done
rm -f ./*.key ./*.csr vectors.cnf
