/**
 * The one door to @peculiar/x509. It throws at import without `reflect-metadata`, and costs about a hundred
 * milliseconds to load: whoever needs it imports this file lazily.
 */
import 'reflect-metadata'

export { Attribute, Name, Pkcs10CertificateRequestGenerator } from '@peculiar/x509'
