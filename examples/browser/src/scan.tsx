import { useEffect, useRef, useState } from "react";
import { Problem } from "./ui.js";

/** The part of the Barcode Detection API that this uses; browsers without it do not offer scanning. */
interface Detector {
  detect(source: HTMLVideoElement): Promise<{ rawValue: string }[]>;
}
const Detection = (globalThis as { BarcodeDetector?: new (options: { formats: string[] }) => Detector }).BarcodeDetector;

export const canScan = Detection !== undefined && navigator.mediaDevices !== undefined;

/** Shows what the camera sees until it sees a QR code. */
export function Scan({ onFound, onCancel }: { onFound: (text: string) => void; onCancel: () => void }) {
  const video = useRef<HTMLVideoElement>(null);
  const [error, setError] = useState<unknown>();
  useEffect(() => {
    let stream: MediaStream | undefined;
    let stopped = false;
    const look = async (detector: Detector): Promise<void> => {
      if (stopped || !video.current) return;
      const [code] = await detector.detect(video.current).catch(() => []);
      if (code) return onFound(code.rawValue);
      requestAnimationFrame(() => void look(detector));
    };
    const start = async (): Promise<void> => {
      if (!Detection) return;
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      if (stopped || !video.current) return;
      video.current.srcObject = stream;
      await video.current.play();
      await look(new Detection({ formats: ["qr_code"] }));
    };
    start().catch(setError);
    return () => {
      stopped = true;
      stream?.getTracks().forEach((track) => track.stop());
    };
  }, []);
  return (
    <div className="field">
      <video ref={video} muted playsInline aria-label="Camera" />
      <Problem error={error} />
      <button type="button" className="quiet" onClick={onCancel}>Stop scanning</button>
    </div>
  );
}
